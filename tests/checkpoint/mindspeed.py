"""What MindSpeed-LLM's converter writes, in plain numpy: every tensor of every file, of its launch options alone.

It shares no code with the planner: it walks layers and ranks as the converter does.

Source:
    Ascend/MindSpeed-LLM 8c01d720, mindspeed_llm/tasks/checkpoint: convert_hf2mg.py (order of rows, which files there
    are), model_builder.py (names).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs
import numpy as np

Arrays = dict[str, np.ndarray]


@attrs.frozen(kw_only=True)
class Options:
    """Of a launch, by the names of its flags, and what its config says of the model."""

    layers: int
    heads: int
    kv_heads: int = 0
    experts: int = 0
    first_k_dense_replace: int = 0
    tie: bool = False
    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    layers_per_vpp_stage: int | None = None
    num_layer_list: tuple[int, ...] = ()
    noop_layers: tuple[int, ...] = ()
    mtp_num_layers: int = 0
    dualpipev: bool = False
    moe_grouped_gemm: bool = False
    moe_tp_extend_ep: bool = False
    transformer_engine: bool = False
    vocab_rows: int = 0


class Placed(NamedTuple):
    """A layer: its number in the published model, and within its chunk."""

    layer: int
    number: int


def written(hf: Arrays, options: Options) -> dict[str, dict[str, Arrays]]:
    """Every file's tensors, by folder, chunk and name."""
    files: dict[str, dict[str, Arrays]] = {}
    for tp_rank, ep_rank in _pairs(options):
        for pp_rank, chunks in enumerate(_chunks(options)):
            folder = f"mp_rank_{tp_rank:02d}"
            folder += f"_{pp_rank:03d}" if options.pp > 1 else ""
            folder += f"_{ep_rank:03d}" if options.ep > 1 else ""
            for number, layers in enumerate(chunks):
                top = f"model{number}" if len(chunks) > 1 else "model"
                first = (pp_rank, number) == (0, 0)
                last = (pp_rank, number) == ((0, 1) if options.dualpipev else (options.pp - 1, len(chunks) - 1))
                tensors = dict(_chunk(hf, options, layers, tp_rank, ep_rank, first=first, last=last))
                files.setdefault(folder, {})[top] = tensors
    return files


def _pairs(options: Options) -> Iterator[tuple[int, int]]:
    """The (tp, ep) ranks that have a file."""
    for tp_rank in range(options.tp):
        for ep_rank in range(options.ep):
            if options.moe_tp_extend_ep or options.etp == options.tp or not options.experts:
                yield tp_rank, ep_rank
            elif options.tp % options.ep == 0:
                if ep_rank == tp_rank % options.ep:
                    yield tp_rank, ep_rank
            elif tp_rank == ep_rank % options.tp:
                yield tp_rank, ep_rank


def _chunks(options: Options) -> list[list[list[Placed]]]:
    """The layers of each chunk of each pp rank; noop layers take numbers."""
    total = options.layers + len(options.noop_layers)
    real = iter(range(options.layers))
    layer_at = [None if position in options.noop_layers else next(real) for position in range(total)]
    if options.num_layer_list:
        ends = np.cumsum(options.num_layer_list)
        spans = [[range(end - count, end)] for end, count in zip(ends, options.num_layer_list, strict=True)]
    elif options.dualpipev:
        half = total // options.pp // 2
        folded = [(rank * half, total - (rank + 1) * half) for rank in range(options.pp)]
        spans = [[range(start, start + half) for start in pair] for pair in folded]
    elif options.layers_per_vpp_stage:
        size = options.layers_per_vpp_stage
        starts = [range(rank * size, total, options.pp * size) for rank in range(options.pp)]
        spans = [[range(start, start + size) for start in of_rank] for of_rank in starts]
    else:
        size = total // options.pp
        spans = [[range(rank * size, (rank + 1) * size)] for rank in range(options.pp)]
    return [
        [[Placed(layer, n) for n, at in enumerate(span) if (layer := layer_at[at]) is not None] for span in of_rank]
        for of_rank in spans
    ]


def _chunk(
    hf: Arrays, options: Options, layers: list[Placed], tp_rank: int, ep_rank: int, *, first: bool, last: bool
) -> Iterator[tuple[str, np.ndarray]]:
    def rows(array: np.ndarray) -> np.ndarray:
        return np.split(array, options.tp)[tp_rank]

    def vocabulary(name: str) -> np.ndarray:
        array = hf[name]
        missing = options.vocab_rows - len(array) if options.vocab_rows else 0
        return rows(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]))

    if first:
        yield "embedding.word_embeddings.weight", vocabulary("model.embed_tokens.weight")
    for layer, number in layers:
        yield from _layer(hf, options, layer, f"decoder.layers.{number}.", tp_rank, ep_rank)
    if not last:
        return
    for index in range(options.mtp_num_layers):
        theirs = f"model.layers.{options.layers + index}."
        yield f"mtp.layers.{index}.enorm.weight", hf[f"{theirs}enorm.weight"]
        yield f"mtp.layers.{index}.hnorm.weight", hf[f"{theirs}hnorm.weight"]
        yield f"mtp.layers.{index}.eh_proj.weight", rows(hf[f"{theirs}eh_proj.weight"])
        yield from _layer(
            hf, options, options.layers + index, f"mtp.layers.{index}.transformer_layer.", tp_rank, ep_rank
        )
        yield f"mtp.final_layernorms.{index}.weight", hf[f"{theirs}shared_head.norm.weight"]
        if options.pp > 1:
            yield "embedding.word_embeddings.weight", vocabulary("model.embed_tokens.weight")
    yield ("" if options.mtp_num_layers else "decoder.") + "final_layernorm.weight", hf["model.norm.weight"]
    if not options.tie:
        yield "output_layer.weight", vocabulary("lm_head.weight")


def _layer(
    hf: Arrays, options: Options, layer: int, ours: str, tp_rank: int, ep_rank: int
) -> Iterator[tuple[str, np.ndarray]]:
    theirs, te = f"model.layers.{layer}.", options.transformer_engine
    dense = not options.experts or layer < options.first_k_dense_replace
    before = "self_attention.linear_qkv.layer_norm_weight" if te else "input_layernorm.weight"
    behind = "mlp.linear_fc1.layer_norm_weight" if te and dense else "pre_mlp_layernorm.weight"
    yield ours + before, hf[f"{theirs}input_layernorm.weight"]
    yield ours + behind, hf[f"{theirs}post_attention_layernorm.weight"]
    attention = {name.removeprefix(f"{theirs}self_attn."): a for name, a in hf.items() if f"{theirs}self_attn." in name}
    latent = "kv_b_proj.weight" in attention
    for name, array in (_latent if latent else _grouped)(attention, options, tp_rank):
        yield f"{ours}self_attention.{name}", array
    if dense:
        parts = (hf[f"{theirs}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        fc1, fc2 = _mlp(*parts, tp=options.tp, rank=tp_rank)
        yield f"{ours}mlp.linear_fc1.weight", fc1
        yield f"{ours}mlp.linear_fc2.weight", fc2
    else:
        for name, array in _moe(hf, options, f"{theirs}mlp.", tp_rank, ep_rank):
            yield f"{ours}mlp.{name}", array


def _grouped(attention: Arrays, options: Options, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """For each key-value head its queries, its key, its value; ranks take the heads in turn."""
    for end in ("weight", "bias"):
        if f"q_proj.{end}" in attention:
            q, k, v = (np.split(attention[f"{x}_proj.{end}"], options.kv_heads) for x in "qkv")
            groups = [part for group in zip(q, k, v, strict=True) for part in group]
            yield f"linear_qkv.{end}", np.split(np.concatenate(groups), options.tp)[rank]
    yield "linear_proj.weight", np.split(attention["o_proj.weight"], options.tp, axis=1)[rank]
    for name in ("q", "k"):
        if f"{name}_norm.weight" in attention:
            yield f"{name}_layernorm.weight", attention[f"{name}_norm.weight"]


def _latent(attention: Arrays, options: Options, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """What goes down as one matrix, whole on every rank; what goes up in parts."""
    queries = attention.get("q_a_proj.weight", attention.get("q_proj.weight"))
    assert queries is not None
    yield "linear_qkv.weight", np.concatenate([queries, attention["kv_a_proj_with_mqa.weight"]])
    yield "linear_proj.weight", np.split(attention["o_proj.weight"], options.tp, axis=1)[rank]
    yield "kv_layernorm.weight", attention["kv_a_layernorm.weight"]
    yield "linear_kv_up_proj.weight", np.split(attention["kv_b_proj.weight"], options.tp)[rank]
    if "q_b_proj.weight" in attention:
        yield "q_layernorm.weight", attention["q_a_layernorm.weight"]
        yield "linear_q_up_proj.weight", np.split(attention["q_b_proj.weight"], options.tp)[rank]


def _mlp(gate: np.ndarray, up: np.ndarray, down: np.ndarray, *, tp: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    fc1 = np.concatenate([np.split(gate, tp)[rank], np.split(up, tp)[rank]])
    return fc1, np.split(down, tp, axis=1)[rank]


def _moe(hf: Arrays, options: Options, theirs: str, tp_rank: int, ep_rank: int) -> Iterator[tuple[str, np.ndarray]]:
    yield "router.weight", hf[f"{theirs}gate.weight"]
    if (bias := f"{theirs}gate.e_score_correction_bias") in hf:
        yield "router.expert_bias", hf[bias]
    for shared in ("shared_experts", "shared_expert"):
        if f"{theirs}{shared}.up_proj.weight" in hf:
            whole = options.etp == 1 and not options.moe_tp_extend_ep
            parts = (hf[f"{theirs}{shared}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            fc1, fc2 = _mlp(*parts, tp=1 if whole else options.tp, rank=0 if whole else tp_rank)
            yield "shared_experts.linear_fc1.weight", fc1
            yield "shared_experts.linear_fc2.weight", fc2
    if (gate := f"{theirs}shared_expert_gate.weight") in hf:
        yield "shared_experts.gate_weight", hf[gate]
    ranks, rank = options.ep, ep_rank
    if options.moe_tp_extend_ep:
        ranks, rank = options.ep * options.tp, ep_rank * options.tp + tp_rank
    size = options.experts // ranks
    matrices = []
    for expert in range(rank * size, (rank + 1) * size):
        parts = (hf[f"{theirs}experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        matrices.append(_mlp(*parts, tp=options.etp, rank=tp_rank if options.etp > 1 else 0))
    if options.moe_grouped_gemm and not options.transformer_engine:
        hidden = matrices[0][1].shape[0]
        yield "experts.weight1", np.stack([fc1.T for fc1, _ in matrices]).reshape(hidden, -1)
        yield "experts.weight2", np.stack([fc2.T for _, fc2 in matrices]).reshape(-1, hidden)
        return
    for number, pair in enumerate(matrices):
        for name, matrix in zip(("linear_fc1", "linear_fc2"), pair, strict=True):
            numbered = f"experts.{name}.weight{number}"
            apart = f"experts.local_experts.{number}.{name}.weight"
            yield (numbered if options.moe_grouped_gemm else apart), matrix


def as_keywords(options: Options) -> dict[str, Any]:
    """The fields of our layout that say the same."""
    chunk = options.layers_per_vpp_stage
    total = options.layers + len(options.noop_layers)
    fields: dict[str, Any] = {"tp": options.tp, "pp": options.pp, "etp": options.etp}
    fields["ep"] = options.ep * options.tp if options.moe_tp_extend_ep else options.ep
    fields |= {"stages": options.num_layer_list} if options.num_layer_list else {}
    fields |= {"noop_layers": options.noop_layers} if options.noop_layers else {}
    fields |= {"vpp": total // options.pp // chunk} if chunk else {}
    fields |= {"schedule": "dualpipe_v"} if options.dualpipev else {}
    return fields
