"""The per-rank layout of Megatron-LM's ``torch`` checkpoints, as MindSpeed-LLM's converter writes it, as buffers.

    latest_checkpointed_iteration.txt                       the step's number
    iter_0000001/mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt  one (tp, pp, ep) rank's; PPP if pp > 1, EEE if ep > 1

A file holds ``model``, or with several chunks ``model0``, ``model1``, ...; layers are numbered within their chunk, noop
layers counted. Grouped experts are packed: ``weight1`` holds, for each expert in turn, its transposed gate and up,
``weight2`` its transposed down, each seen as a matrix of ``hidden`` rows or columns.

Source:
    Ascend/MindSpeed-LLM 8c01d720, mindspeed_llm/tasks/checkpoint/convert_hf2mg.py and convert.py (names of folders,
    order of experts, numbers of layers, which (tp, ep) exist); megatron-core 0.16.1, transformer/moe/experts.py.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import lcm
from typing import Literal, NamedTuple

import attrs

from ridgeline.checkpoint.boxes import Box, whole
from ridgeline.checkpoint.module_order import MEGATRON_LATENT, in_module_order
from ridgeline.checkpoint.names import stored
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, piece_of, row_major
from ridgeline.checkpoint.ranks import rank_buffers
from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.fields import check_spec
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Batch, Job
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, LatentAttention, ModelSpec
from ridgeline.parallel.check import job_problems
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.mesh import Mesh, expert_coords, rank_coords
from ridgeline.parallel.of_job import mesh_of, stages_of
from ridgeline.parallel.shards import LocalParam, ParamRow, plan_shards, rank_params
from ridgeline.parallel.stages import StageMap

FILE = "model_optim_rng.pt"
POINTER = "latest_checkpointed_iteration.txt"
VERSION = 3.0
TRAINING_ONLY = ("layout.sp", "layout.cp", "layout.schedule", "layout.vpp", "batch.gbs", "layout.microbatch_group_size")
"""Rules about these are about a training run, not about where weights lie."""


@frozen(kw_only=True)
class ClassicForm:
    """What a launch script's flags decide of names and packing.

    Attributes:
        experts: ``grouped`` (``--moe-grouped-gemm``) or one module an expert.
        impl: Names of the layers (``--transformer-impl``): Transformer Engine keeps a norm within the layer behind it.
        tp_extend_ep: Experts are spread over tp too (``--moe-tp-extend-ep``): ``layout.ep`` counts all of them.
        dialect: Where the two differ: MindSpeed-LLM keeps the down-projections of latent attention as one
            ``linear_qkv``, whole on every rank, shared experts whole where ``etp`` is 1 and tp is not, and under MTP
            the norm behind the decoder as ``final_layernorm``, those behind MTP layers as ``mtp.final_layernorms``.
    """

    experts: Literal["sequential", "grouped"] = "sequential"
    impl: Literal["local", "te"] = "local"
    tp_extend_ep: bool = False
    dialect: Literal["mindspeed", "megatron"] = "mindspeed"
    __attrs_post_init__ = check_spec


class LaidOut(NamedTuple):
    """A model on a mesh of just the ranks whose files differ."""

    mesh: Mesh
    stages: StageMap
    shards: tuple[ParamRow, ...]
    layout: Layout


def lay_out(model: ModelSpec, layout: Layout) -> LaidOut:
    """Where a layout puts a model, on as few ranks as it can have.

    Raises:
        PlanError: Every rule that the layout breaks.
    """
    placing = attrs.evolve(layout, cp=1, sp=False, microbatch_group_size=None)  # the rest is about training
    ranks = lcm(layout.tp, layout.etp * layout.ep)
    cluster = cluster_preset("cpu", devices_per_node=ranks * layout.pp)
    job = Job(model=model, layout=placing, cluster=cluster, batch=Batch(seq_len=2, mbs=1, gbs=ranks))
    if problems := [problem for problem in job_problems(job) if problem.path not in TRAINING_ONLY]:
        raise PlanError(problems)
    return LaidOut(mesh_of(job), stages_of(job), plan_shards(model, layout), job.layout)


def classic_holders(
    laid: LaidOut, form: ClassicForm, *, numbers: Mapping[tuple[int, int], Sequence[int]] | None = None
) -> tuple[Holder, ...]:
    """Every file of a checkpoint, and the buffers in it, named ``model/KEY`` or ``model0/KEY``, in its modules' order.

    Args:
        laid: The model on its mesh.
        form: Names and packing.
        numbers: Of the layers of each (pp_rank, chunk); by default those that count noop layers.

    Raises:
        PlanError: Two different ranks would write one file.
    """
    numbers = numbers or layer_numbers(laid.stages, laid.layout.noop_layers)
    files: dict[str, tuple[int, int, int]] = {}
    holders = []
    for rank in range(laid.mesh.world_size):
        name, coords = _file_of(rank, laid.mesh, form), _expert_place(rank, laid.mesh)
        if name not in files:
            files[name] = coords
            holders.append(Holder(name, tuple(_file_buffers(laid, rank, form, numbers)), (rank,)))
        elif files[name] != coords:
            rule = f"cannot be told apart in {name}, which names tp, pp and ep ranks only"
            raise PlanError(Problem("layout.etp", laid.mesh.etp, rule, f"use 1 or tp={laid.mesh.tp}"))
    return tuple(holders)


def layer_numbers(stages: StageMap, noop_layers: Sequence[int]) -> dict[tuple[int, int], tuple[int, ...]]:
    """The numbers, within its chunk, of the layers of each (pp_rank, chunk); noop layers take numbers too.

    Example:
        >>> from ridgeline.parallel.stages import plan_stages
        >>> layer_numbers(plan_stages(7, pp=2, noop_layers=(5,)), (5,))
        {(0, 0): (0, 1, 2, 3), (1, 0): (0, 2, 3)}
    """
    numbers = {}
    size = (stages.num_layers + len(noop_layers)) // stages.num_stages
    for pp_rank in range(stages.pp):
        for chunk, stage in enumerate(stages.owned_by(pp_rank)):
            count = len(stages.layers[stage]) + len(stages.noop_layers[stage])
            noops = {position - stage * size for position in stages.noop_layers[stage]}
            numbers[pp_rank, chunk] = tuple(number for number in range(count) if number not in noops)
    return numbers


def folder_name(*, tp_rank: int, pp_rank: int | None, ep_rank: int | None) -> str:
    """The folder of a rank; None leaves a part out.

    Example:
        >>> folder_name(tp_rank=1, pp_rank=0, ep_rank=3)
        'mp_rank_01_000_003'
    """
    return f"mp_rank_{tp_rank:02d}" + "".join(f"_{part:03d}" for part in (pp_rank, ep_rank) if part is not None)


def _file_of(rank: int, mesh: Mesh, form: ClassicForm) -> str:
    dense, experts = rank_coords(rank, mesh), expert_coords(rank, mesh)
    ep, ep_rank = mesh.ep, experts.ep_rank
    if form.tp_extend_ep:
        ep, ep_rank = ep // mesh.tp, ep_rank // mesh.tp
    folder = folder_name(
        tp_rank=dense.tp_rank,
        pp_rank=dense.pp_rank if mesh.pp > 1 else None,
        ep_rank=ep_rank if ep > 1 else None,
    )
    return f"{folder}/{FILE}"


def _expert_place(rank: int, mesh: Mesh) -> tuple[int, int, int]:
    coords = expert_coords(rank, mesh)
    return coords.etp_rank, coords.ep_rank, coords.pp_rank


def _file_buffers(
    laid: LaidOut, rank: int, form: ClassicForm, numbers: Mapping[tuple[int, int], Sequence[int]]
) -> Iterator[Buffer]:
    pp_rank = rank_coords(rank, laid.mesh).pp_rank
    held = list(rank_params(laid, rank))
    for chunk, in_chunk in groupby(held, key=lambda param: param.chunk):
        top = f"model{chunk}" if laid.stages.vpp > 1 else "model"
        own = list(in_chunk)
        if form.dialect == "mindspeed" and laid.mesh.pp > 1 and any(p.name.startswith("mtp.") for p in own):
            own = _with_embedding(own, held)
        run = in_module_order(own, latent=MEGATRON_LATENT, grouped=form.experts == "grouped")
        for is_expert, params in groupby(run, key=lambda param: param.expert is not None):
            buffers_of = _expert_buffers if is_expert else _dense_buffers
            for buffer in buffers_of(params, rank, laid.mesh, form):
                yield buffer._replace(name=f"{top}/{_numbered(buffer.name, numbers[pp_rank, chunk])}")


def _with_embedding(chunk: Sequence[LocalParam], held: Sequence[LocalParam]) -> list[LocalParam]:
    """A chunk with MTP layers, which has an embedding of its own even where another chunk of its rank has one."""
    if any(param.param.role == "embedding" for param in chunk):
        return list(chunk)
    return [next(param for param in held if param.param.role == "embedding"), *chunk]


def _dense_buffers(params: Iterable[LocalParam], rank: int, mesh: Mesh, form: ClassicForm) -> Iterator[Buffer]:
    params = list(params)
    plain = {before for before, found, _ in (p.name.partition(".mlp.linear_fc1.weight") for p in params) if found}
    for name, buffer in _in_dialect(params, rank_buffers(params, rank, mesh), mesh, form):
        yield buffer._replace(name=name if form.impl == "local" else _te_name(name, plain))


def _in_dialect(
    params: Sequence[LocalParam], buffers: Sequence[Buffer], mesh: Mesh, form: ClassicForm
) -> Iterator[tuple[str, Buffer]]:
    """Each buffer under its name, with what the dialect keeps whole or as one."""
    whole_shared = mesh.etp == 1 < mesh.tp and not form.tp_extend_ep
    queries: Buffer | None = None
    for param, buffer in zip(params, buffers, strict=True):
        layer, _, part = param.name.rpartition(".self_attention.")
        if form.dialect == "mindspeed" and part in ("linear_q_proj.weight", "linear_q_down_proj.weight"):
            queries = _whole(param)
        elif form.dialect == "mindspeed" and part == "linear_kv_down_proj.weight":
            assert queries is not None
            yield f"{layer}.self_attention.linear_qkv.weight", _one_below_other(queries, _whole(param))
        elif form.dialect == "mindspeed" and whole_shared and ".shared_experts.linear_fc" in param.name:
            yield param.name, _whole(param)
        else:
            rows = range(sum(piece.box.shape[0] for piece in buffer.pieces), buffer.shape[0])
            padding = _padding(param, rows) if param.param.role in ("embedding", "head", "head_bias") else ()
            yield param.name, buffer._replace(padding=tuple(padding))


def _whole(param: LocalParam) -> Buffer:
    shape = param.param.shape
    return Buffer(param.name, shape, (piece_of(param.fqn, whole(shape), shape=shape, at=(0,) * len(shape)),))


def _one_below_other(above: Buffer, below: Buffer) -> Buffer:
    pieces = [piece._replace(start=piece.start + above.elements) for piece in below.pieces]
    return Buffer(above.name, (above.shape[0] + below.shape[0], *above.shape[1:]), (*above.pieces, *pieces))


def _te_name(name: str, plain: Collection[str]) -> str:
    """Transformer Engine's name of a tensor; ``plain`` layers have one MLP, which keeps the norm before it."""
    layer, found, _ = name.partition(".pre_mlp_layernorm.weight")
    if found and layer in plain:
        return f"{layer}.mlp.linear_fc1.layer_norm_weight"
    return name.replace(".input_layernorm.weight", ".self_attention.linear_qkv.layer_norm_weight")


def _expert_name(name: str, form: ClassicForm) -> str:
    """The name of one expert's tensor; Transformer Engine's grouped layer numbers its weights."""
    before, _, rest = name.partition(".local_experts.")
    expert, _, tensor = rest.partition(".")
    return f"{before}.{tensor}{expert}" if form.experts == "grouped" else name


def _padding(param: LocalParam, rows: range) -> Iterator[Piece]:
    """The vocabulary's last row in each row of padding, as Megatron-LM's own converters pad."""
    last, beside = param.param.shape[0] - 1, param.param.shape[1:]
    strides = row_major((1, *beside))
    for row in rows:
        yield Piece(param.fqn, Box((last, *(0,) * len(beside)), (1, *beside)), row * strides[0], strides)


def _expert_buffers(params: Iterable[LocalParam], rank: int, mesh: Mesh, form: ClassicForm) -> Iterator[Buffer]:
    if form.experts == "grouped" and form.impl == "local":
        for (_, run), buffer in zip(*_by_row(params, rank, mesh), strict=True):
            yield _packed(buffer, run[0])
        return
    for param in params:
        (buffer,) = rank_buffers((param,), rank, mesh)
        yield buffer._replace(name=_expert_name(param.name, form), shape=param.local_shape)


def _by_row(
    params: Iterable[LocalParam], rank: int, mesh: Mesh
) -> tuple[list[tuple[str, list[LocalParam]]], list[Buffer]]:
    """Experts by the tensor that holds all of a layer's, and the buffer of each."""
    params = list(params)
    runs = [(key, list(run)) for key, run in groupby(params, key=lambda param: stored(param.fqn, param.param).key)]
    return runs, rank_buffers(params, rank, mesh)


def _packed(buffer: Buffer, first: LocalParam) -> Buffer:
    """Experts, (count, rows, columns), each transposed, seen as one matrix."""
    count, rows, columns = buffer.shape
    each = rows * columns
    pieces = []
    for piece in buffer.pieces:
        row, column = divmod(piece.start, columns)
        pieces.append(piece._replace(start=column * rows + row, strides=(each, 1, rows)))
    experts, _, part = first.name.partition(".local_experts.")
    if part.endswith("linear_fc1.weight"):
        return Buffer(f"{experts}.weight1", (columns, count * rows), tuple(pieces))
    return Buffer(f"{experts}.weight2", (count * columns, rows), tuple(pieces))


def _numbered(name: str, numbers: Sequence[int]) -> str:
    """A name whose layer is counted with noop layers."""
    parts = name.split(".")
    if parts[:2] == ["decoder", "layers"]:
        parts[2] = str(numbers[int(parts[2])])
    return ".".join(parts)


def name_in_file(name: str, form: ClassicForm, *, mtp: bool) -> str:
    """The name of a tensor in a file: MindSpeed-LLM keeps the last norms of a model with ``mtp`` elsewhere.

    Example:
        >>> name_in_file("mtp.layers.0.final_layernorm.weight", ClassicForm(), mtp=True)
        'mtp.final_layernorms.0.weight'
    """
    if not mtp or form.dialect != "mindspeed":
        return name
    return re.sub(r"^mtp\.layers\.(\d+)\.final_layernorm\.", r"mtp.final_layernorms.\1.", _outer(name))


def name_of_tensor(name: str) -> str:
    """The name that a tensor has under every dialect, by its name in a file.

    Example:
        >>> name_of_tensor("mtp.final_layernorms.0.weight"), name_of_tensor("final_layernorm.weight")
        ('mtp.layers.0.final_layernorm.weight', 'decoder.final_layernorm.weight')
    """
    inner = f"decoder.{name}" if name.startswith("final_layernorm.") else name
    return re.sub(r"^mtp\.final_layernorms\.(\d+)\.", r"mtp.layers.\1.final_layernorm.", inner)


def _outer(name: str) -> str:
    return name.removeprefix("decoder.") if name.startswith("decoder.final_layernorm.") else name


def classic_arguments(model: ModelSpec, laid: LaidOut, form: ClassicForm) -> dict[str, object]:
    """The launch's arguments that Megatron-LM compares with its own when it loads such a checkpoint."""
    mixers = [block.mixer for block in model.layers()]
    layout = laid.layout
    embedding = next(row.shard for row in laid.shards if row.param.role == "embedding")
    return {
        "num_layers": model.num_layers + len(layout.noop_layers),
        "hidden_size": model.hidden,
        "num_attention_heads": next(
            (mixer.heads for mixer in mixers if isinstance(mixer, (Attention, LatentAttention))), 0
        ),
        "max_position_embeddings": model.max_position,
        "add_position_embedding": True,
        "vocab_size": model.vocab_size,
        "padded_vocab_size": embedding.global_shape[0],
        "make_vocab_size_divisible_by": layout.vocab_multiple,
        "tokenizer_type": None,
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "expert_model_parallel_size": layout.ep // layout.tp if form.tp_extend_ep else layout.ep,
        "expert_tensor_parallel_size": layout.etp,
        "moe_tp_extend_ep": form.tp_extend_ep,
        "untie_embeddings_and_output_weights": not model.tied_embeddings,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
