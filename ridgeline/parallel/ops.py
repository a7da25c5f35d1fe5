"""The operations of one microbatch on one rank: what each computes, moves, saves for its backward, and communicates.

Memory, time and collectives all read this one list. Legend: ``tokens`` are those of a sequence slice and microbatch
(seq_len/cp * mbs) and ``own_tokens`` those whose residual stream this rank holds (``tokens/tp`` under sp, else all).

Source:
    megatron-core 0.16.1: tensor_parallel/layers.py (a column-parallel linear saves its input as it came, gathered or
    not, and gathers it again for the weight's gradient), tensor_parallel/cross_entropy.py (saves an fp32 softmax),
    transformer/mlp.py and transformer/moe (an expert's activation is scaled by its tokens' weights, which saves it),
    transformer/moe/token_dispatcher.py. Kernels that save as little as their gradient needs: an RMSNorm its input and
    fp32 rstd, SwiGLU its input, attention q, k, v, its output and two fp32 statistics of 8 lanes a row
    (npu_fusion_attention), rotary positions nothing but their tables.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ridgeline.core.flops import attended_positions
from ridgeline.core.job import Job, SelectiveRecompute
from ridgeline.core.model import Attention, Block, Mlp, Moe
from ridgeline.parallel.shards import padded_vocab

STATISTICS_BYTES = 2 * 8 * 4  # softmax max and sum, 8 fp32 lanes a row each


class Saved(NamedTuple):
    """A tensor kept from forward to backward; recomputing the part ``dropped_by`` names does without it.

    Weight gradients need those ``for_weight``, the inputs of matrix products: a split backward keeps them to its end.
    """

    name: str
    size_bytes: int
    dropped_by: str = ""
    for_weight: bool = False


class Comm(NamedTuple):
    """A collective within a layer.

    Attributes:
        phase: ``F`` or ``B``.
        kind: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all`` or ``p2p``.
        axes: Of the mesh, as ``group_of`` takes them.
        size_bytes: The whole tensor: gathered, reduced, or sent by one rank in all.
        repeats: How often, one after the other.
    """

    phase: str
    kind: str
    axes: str
    size_bytes: int
    repeats: int = 1


class Op(NamedTuple):
    """One operation.

    Attributes:
        name: Within its layer.
        part: What recompute calls the part it belongs to, or "".
        gemms: Matrix products of the forward, ``(m, k, n)``; the backward has two of each.
        gemm_repeats: How often each runs, once an expert.
        attention_flops: Of the attention kernel's forward.
        moved_bytes: Memory traffic of a forward that is no matrix product.
        saved: Tensors it keeps that no other operation of the layer keeps already.
        comms: Its collectives.
        forward_work_bytes, backward_work_bytes: Tensors alive only while it runs, beyond those saved.
    """

    name: str
    part: str = ""
    gemms: tuple[tuple[int, int, int], ...] = ()
    gemm_repeats: int = 1
    attention_flops: float = 0.0
    moved_bytes: int = 0
    saved: tuple[Saved, ...] = ()
    comms: tuple[Comm, ...] = ()
    forward_work_bytes: int = 0
    backward_work_bytes: int = 0


class Sizes(NamedTuple):
    """What the operations of a job on one rank are measured in."""

    tokens: int
    own_tokens: int
    seq_len: int
    hidden: int
    vocab: int
    width: int
    tp: int
    sp: bool
    cp: int
    cp_algorithm: str
    ep: int
    etp: int
    dispatcher: str
    recomputes_attention: bool


def sizes_of(job: Job) -> Sizes:
    """The sizes of a job's operations; ``width`` is the bytes of an element of weights and activations."""
    layout, recompute = job.layout, job.memory.recompute
    tokens = job.batch.seq_len // layout.cp * job.batch.mbs
    return Sizes(
        tokens=tokens,
        own_tokens=tokens // layout.tp if layout.sp else tokens,
        seq_len=job.batch.seq_len,
        hidden=job.model.hidden,
        vocab=padded_vocab(job.model.vocab_size, layout),
        width=2 if job.precision.params == "bf16" else 4,
        tp=layout.tp,
        sp=layout.sp,
        cp=layout.cp,
        cp_algorithm=layout.cp_algorithm,
        ep=layout.ep,
        etp=layout.etp,
        dispatcher=job.comm.moe_dispatcher,
        recomputes_attention=isinstance(recompute, SelectiveRecompute) and "core_attn" in recompute.modules,
    )


def block_ops(block: Block, sizes: Sizes) -> tuple[Op, ...]:
    """The operations of one layer, in the order of its forward."""
    assert isinstance(block.mixer, Attention)
    feed_forward = (
        _mlp_ops(block.feed_forward, sizes)
        if isinstance(block.feed_forward, Mlp)
        else _moe_ops(block.feed_forward, sizes)
    )
    return (
        _norm("input_layernorm", "x", sizes),
        *_attention_ops(block.mixer, sizes),
        _add("attention_residual", sizes),
        _norm("pre_mlp_layernorm", "x_after_attention", sizes),
        *feed_forward,
        _add("mlp_residual", sizes),
    )


def embedding_ops(sizes: Sizes) -> tuple[Op, ...]:
    """The embedding's lookup."""
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    weight_grad = sizes.vocab // sizes.tp * sizes.hidden * sizes.width
    return (
        Op(
            "embedding",
            moved_bytes=2 * sizes.tokens * sizes.hidden * sizes.width,
            saved=(Saved("tokens", sizes.tokens * 8),),
            comms=tuple(_row_comms(sizes)),
            forward_work_bytes=_whole(sizes) + stream,
            backward_work_bytes=weight_grad + _whole(sizes),
        ),
    )


def head_ops(sizes: Sizes) -> tuple[Op, ...]:
    """The final norm, the head and the loss."""
    local_vocab = sizes.vocab // sizes.tp
    elements = sizes.tokens * local_vocab
    copies = elements * sizes.width if sizes.width < 4 else 0  # fp32 logits become their own softmax and gradient
    comms = [Comm("F", "all_reduce", "tp", sizes.tokens * 4, repeats=3)] if sizes.tp > 1 else []
    return (
        _norm("final_layernorm", "x_final", sizes),
        Op(
            "head",
            gemms=((sizes.tokens, sizes.hidden, local_vocab),),
            saved=(Saved("head_input", sizes.own_tokens * sizes.hidden * sizes.width, for_weight=True),),
            comms=tuple(_column_comms(sizes)),
            backward_work_bytes=local_vocab * sizes.hidden * sizes.width
            + 2 * sizes.tokens * sizes.hidden * sizes.width,
        ),
        Op(
            "loss",
            moved_bytes=elements * (2 * sizes.width + 5 * 4),
            saved=(Saved("softmax", elements * 4), Saved("labels", sizes.tokens * 24)),
            comms=tuple(comms),
            forward_work_bytes=copies,
            backward_work_bytes=copies,
        ),
    )


def kept(ops: tuple[Op, ...], recomputed: tuple[str, ...]) -> int:
    """Bytes that operations keep for their backward when some parts are recomputed."""
    return sum(saved.size_bytes for op in ops for saved in op.saved if saved.dropped_by not in recomputed)


def deferred(ops: tuple[Op, ...], width: int) -> int:
    """Bytes that a split backward keeps from its input gradients to its weight gradients.

    Both factors of each product that is a weight gradient: a matrix product's input and its output's gradient.

    Source:
        Qi et al., arXiv 2401.10241, table 1: 32sbh bytes a layer of which 14 are inputs and 18 gradients.
    """
    inputs = sum(saved.size_bytes for op in ops for saved in op.saved if saved.for_weight)
    return inputs + width * sum(m * n * op.gemm_repeats for op in ops for m, _, n in op.gemms)


def _whole(sizes: Sizes) -> int:
    """A full activation beside the rank's own part of it, where tp splits the stream."""
    return sizes.tokens * sizes.hidden * sizes.width if sizes.tp > 1 else 0


def _norm(name: str, saves: str, sizes: Sizes) -> Op:
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    return Op(
        name,
        part="layernorm" if name != "final_layernorm" else "",
        moved_bytes=2 * stream,
        saved=(Saved(saves, stream), Saved("rstd", sizes.own_tokens * 4)),
    )


def _add(name: str, sizes: Sizes) -> Op:
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    return Op(name, moved_bytes=3 * stream, forward_work_bytes=stream)


def _column_comms(sizes: Sizes) -> Iterator[Comm]:
    """Around a linear that splits its output."""
    whole = sizes.tokens * sizes.hidden * sizes.width
    if sizes.tp > 1 and sizes.sp:
        yield Comm("F", "all_gather", "tp", whole)
        yield Comm("B", "all_gather", "tp", whole)
        yield Comm("B", "reduce_scatter", "tp", whole)
    elif sizes.tp > 1:
        yield Comm("B", "all_reduce", "tp", whole)


def _row_comms(sizes: Sizes) -> Iterator[Comm]:
    """Around a linear or an embedding that splits its input."""
    whole = sizes.tokens * sizes.hidden * sizes.width
    if sizes.tp > 1 and sizes.sp:
        yield Comm("F", "reduce_scatter", "tp", whole)
        yield Comm("B", "all_gather", "tp", whole)
    elif sizes.tp > 1:
        yield Comm("F", "all_reduce", "tp", whole)


def _attention_ops(mixer: Attention, sizes: Sizes) -> tuple[Op, ...]:
    tp, tokens, width = sizes.tp, sizes.tokens, sizes.width
    stream = sizes.own_tokens * sizes.hidden * width
    heads, kv_heads = mixer.heads // tp, max(1, mixer.kv_heads // tp)
    q, kv = tokens * heads * mixer.head_dim * width, tokens * kv_heads * mixer.head_dim * width
    qkv_columns = (mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim // tp
    fused = tokens * qkv_columns * width
    gather = []
    if mixer.kv_heads < tp:  # a rank's rows are no whole heads: all are gathered, and it picks its own
        gather = [Comm("F", "all_gather", "tp", fused * tp), Comm("B", "reduce_scatter", "tp", fused * tp)]
    head_norm: tuple[Saved, ...] = ()
    if mixer.qk_norm:
        # Norms save their inputs: k as a view that keeps the fused tensor alive, q as a copy where its heads lie apart.
        copied = q if 1 < kv_heads < heads else 0
        statistics = tokens * (heads + kv_heads) * 4
        head_norm = (Saved("q_before_norm", copied), Saved("qkv", fused), Saved("head_rstd", statistics))
    # A kernel saves v as a copy; the checkpoint around a recomputed one, as a view that keeps the fused tensor alive.
    v = fused if sizes.recomputes_attention and not mixer.qk_norm else kv
    positions = attended_positions(mixer, sizes.seq_len, "causal")
    return (
        Op(
            "linear_qkv",
            gemms=((tokens, sizes.hidden, qkv_columns),),
            saved=(Saved("qkv_input", stream, "layernorm", for_weight=True),),
            comms=(*_column_comms(sizes), *gather),
            forward_work_bytes=fused,
            backward_work_bytes=2 * fused + qkv_columns * sizes.hidden * width,
        ),
        Op("rope", moved_bytes=(6 if mixer.qk_norm else 4) * (q + kv), saved=head_norm, forward_work_bytes=q + kv),
        Op(
            "attention",
            part="core_attn",
            attention_flops=4 * positions * tokens * heads * mixer.head_dim,
            saved=(
                Saved("q", q),
                Saved("k", kv),
                Saved("v", v),
                Saved("statistics", tokens * heads * STATISTICS_BYTES, "core_attn"),
                Saved("context", q, for_weight=True),
            ),
            comms=tuple(_context_comms(mixer, sizes, q, kv)),
            backward_work_bytes=2 * q + 2 * kv,
        ),
        Op(
            "linear_proj",
            gemms=((tokens, heads * mixer.head_dim, sizes.hidden),),
            comms=tuple(_row_comms(sizes)),
            forward_work_bytes=_whole(sizes) + stream,
            backward_work_bytes=_whole(sizes) + q + sizes.hidden * heads * mixer.head_dim * width,
        ),
    )


def _context_comms(mixer: Attention, sizes: Sizes, q: int, kv: int) -> Iterator[Comm]:
    if sizes.cp == 1:
        return
    if sizes.cp_algorithm == "ring":
        yield Comm("F", "p2p", "cp", 2 * kv, repeats=sizes.cp - 1)
        yield Comm("B", "p2p", "cp", 4 * kv, repeats=sizes.cp - 1)
    elif sizes.cp_algorithm == "kv_allgather":
        yield Comm("F", "all_gather", "cp", 2 * kv * sizes.cp)
        yield Comm("B", "all_gather", "cp", 2 * kv * sizes.cp)
        yield Comm("B", "reduce_scatter", "cp", 2 * kv * sizes.cp)
    else:
        spread = kv if mixer.kv_heads // sizes.tp >= sizes.cp else q  # too few kv heads are repeated first
        for phase in ("F", "B"):
            yield Comm(phase, "all_to_all", "cp", q, repeats=2)
            yield Comm(phase, "all_to_all", "cp", spread, repeats=2)


def _mlp_ops(mlp: Mlp, sizes: Sizes) -> tuple[Op, ...]:
    tokens, width, ffn = sizes.tokens, sizes.width, mlp.ffn_hidden // sizes.tp
    stream = sizes.own_tokens * sizes.hidden * width
    activation = tokens * ffn * width
    weight = sizes.hidden * ffn * width
    return (
        Op(
            "linear_fc1",
            "mlp",
            gemms=((tokens, sizes.hidden, 2 * ffn),),
            saved=(Saved("mlp_input", stream, "layernorm", for_weight=True),),
            comms=tuple(_column_comms(sizes)),
            backward_work_bytes=2 * weight + _whole(sizes) + stream,
        ),
        Op(
            "swiglu",
            "mlp",
            moved_bytes=3 * activation,
            saved=(Saved("gate_up", 2 * activation, "mlp"),),
            backward_work_bytes=3 * activation,
        ),
        Op(
            "linear_fc2",
            "mlp",
            gemms=((tokens, ffn, sizes.hidden),),
            saved=(Saved("activation", activation, "mlp", for_weight=True),),
            comms=tuple(_row_comms(sizes)),
            forward_work_bytes=_whole(sizes) + stream,
            backward_work_bytes=_whole(sizes) + activation + weight,
        ),
    )


def _moe_ops(moe: Moe, sizes: Sizes) -> tuple[Op, ...]:
    tokens, width, ffn = sizes.own_tokens, sizes.width, moe.ffn_hidden // sizes.etp
    stream = tokens * sizes.hidden * width
    scores = tokens * moe.experts * 4  # the router works in fp32
    local_experts = moe.experts // sizes.ep
    rows = tokens * moe.topk * sizes.etp  # of this rank's experts, when every expert gets its share
    dispatched = rows * sizes.hidden * width
    activation = rows * ffn * width
    weight = sizes.hidden * ffn * width
    aux = [Comm("F", "all_reduce", "tp-cp", moe.experts * 8)] if moe.aux_loss and sizes.tp * sizes.cp > 1 else []
    dispatch, combine = _dispatcher_comms(moe, sizes)
    each = -(-rows // local_experts)
    return (
        Op(
            "router",
            "moe",
            gemms=((tokens, sizes.hidden, moe.experts),),
            moved_bytes=6 * scores,
            saved=(
                Saved("mlp_input", stream, "layernorm", for_weight=True),
                # logits, and the scattered weights; the auxiliary loss keeps a softmax of all scores
                Saved("router_scores", (3 if moe.aux_loss else 2) * scores, "moe"),
                Saved("routing_map", tokens * moe.experts + tokens * moe.topk * 16, "moe"),
            ),
            comms=tuple(aux),
            forward_work_bytes=2 * scores,
            backward_work_bytes=2 * scores,
        ),
        Op(
            "dispatch",
            "moe",
            moved_bytes=4 * dispatched,
            comms=dispatch,
            forward_work_bytes=2 * dispatched,
            backward_work_bytes=2 * dispatched,
        ),
        Op(
            "expert_fc1",
            "moe",
            gemms=((each, sizes.hidden, 2 * ffn),),
            gemm_repeats=local_experts,
            saved=(Saved("expert_input", dispatched, "moe", for_weight=True),),
            backward_work_bytes=2 * dispatched + 2 * weight,
        ),
        Op(
            "expert_swiglu",
            "moe",
            moved_bytes=3 * activation + 2 * activation,
            # SwiGLU's input and, since the tokens' weights multiply it, its output; then the product
            saved=(Saved("expert_gate_up", 2 * activation, "moe"), Saved("expert_activation", activation, "moe")),
            backward_work_bytes=(3 * activation + rows * ffn * 4) // local_experts,
        ),
        Op(
            "expert_fc2",
            "moe",
            gemms=((each, ffn, sizes.hidden),),
            gemm_repeats=local_experts,
            saved=(
                Saved("expert_scaled", activation, "moe", for_weight=True),
                Saved("expert_weights", rows * 4, "moe"),
            ),
            forward_work_bytes=2 * dispatched,
            backward_work_bytes=2 * dispatched + weight,
        ),
        Op(
            "combine",
            "moe",
            moved_bytes=4 * dispatched,
            comms=combine,
            forward_work_bytes=2 * dispatched,
            backward_work_bytes=2 * dispatched,
        ),
    )


def _dispatcher_comms(moe: Moe, sizes: Sizes) -> tuple[tuple[Comm, ...], tuple[Comm, ...]]:
    """Collectives before and after the experts."""
    group = sizes.etp * sizes.ep
    if group == 1:
        return (), ()
    tokens, hidden = sizes.own_tokens, sizes.hidden * sizes.width
    if sizes.dispatcher == "allgather":
        every = tokens * group
        states, weights = every * hidden, every * moe.experts * 4
        combined = every * sizes.hidden * 4  # summed in the fp32 of the tokens' weights
        return (
            Comm("F", "all_gather", "etp-ep", every * moe.experts),
            Comm("F", "all_gather", "etp-ep", weights),
            Comm("F", "all_gather", "etp-ep", states),
            Comm("B", "reduce_scatter", "etp-ep", weights),
            Comm("B", "reduce_scatter", "etp-ep", states),
        ), (
            Comm("F", "reduce_scatter", "etp-ep", combined),
            Comm("B", "all_gather", "etp-ep", combined),
        )
    rows = tokens * moe.topk
    dispatch = [Comm("F", "all_gather", "etp-ep", group * moe.experts * 8)]
    combine = []
    if sizes.ep > 1:
        for phase in ("F", "B"):
            dispatch += [Comm(phase, "all_to_all", "ep", rows * hidden), Comm(phase, "all_to_all", "ep", rows * 4)]
            combine.append(Comm(phase, "all_to_all", "ep", rows * hidden))
    if sizes.etp > 1:
        states, weights = rows * sizes.etp * hidden, rows * sizes.etp * 4
        dispatch += [Comm("F", "all_gather", "etp", states), Comm("F", "all_gather", "etp", weights)]
        dispatch += [Comm("B", "reduce_scatter", "etp", states), Comm("B", "reduce_scatter", "etp", weights)]
        combined = rows * sizes.etp * sizes.hidden * 4  # summed in the fp32 of the tokens' weights
        combine += [Comm("F", "reduce_scatter", "etp", combined), Comm("B", "all_gather", "etp", combined)]
    return tuple(dispatch), tuple(combine)
