"""Attention: the fused projection, rotary positions, the kernel, the projection back."""

from collections.abc import Iterator

from ridgeline.core.flops import attended_positions
from ridgeline.core.model import Attention
from ridgeline.parallel.ops.context import Spread, context_comms, context_work, kv_kept, merged_bytes
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, dropped, row_comms, whole
from ridgeline.parallel.ops.words import Comm, Op, Saved

STATISTICS_BYTES = 2 * 8 * 4  # softmax max and sum, 8 fp32 lanes a row each


def attention_ops(mixer: Attention, sizes: Sizes) -> Iterator[Op]:
    """From the layer's normed input to its output before the residual."""
    tp, tokens, width = sizes.tp, sizes.tokens, sizes.width
    stream = sizes.own_tokens * sizes.hidden * width
    heads, kv_heads = mixer.heads // tp, max(1, mixer.kv_heads // tp)
    q, kv = tokens * heads * mixer.head_dim * width, tokens * kv_heads * mixer.head_dim * width
    made = 0 if mixer.shares_kv else 2 * mixer.kv_heads
    columns = (mixer.heads * (2 if mixer.gate == "element" else 1) + made) * mixer.head_dim // tp
    fused = tokens * columns * width
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
    spread = Spread(q=q, k=kv, v=kv, kv_heads=mixer.kv_heads)
    exchange, more = context_work(spread, sizes), kv_kept(spread, sizes) - 2 * kv
    keys = (Saved("k", kv), Saved("v", v), *((Saved("repeated_kv", more),) if more else ()))
    if mixer.shares_kv:  # each layer turns its own keys; values are a view of what was handed on
        keys = (Saved("k", kv), Saved("handed_kv", 2 * kv))
    queries: tuple[Saved, ...] = (Saved("q", q),)
    if "attention" in sizes.plain and mixer.positions != "rope" and not mixer.qk_norm:
        queries, keys = (), (Saved("v", fused),)  # nothing turned them: all are views of the fused tensor
    biases = alibi_bytes(mixer, sizes)
    positions = attended_positions(mixer, sizes.seq_len, "full" if "attention" in sizes.plain else "causal")
    yield Op(
        "linear_qkv",
        gemms=((tokens, sizes.hidden, columns),),
        saved=(Saved("qkv_input", stream, "layernorm", for_weight=True),),
        comms=(*column_comms(sizes), *gather),
        forward_work_bytes=fused,
        backward_work_bytes=2 * fused + columns * sizes.hidden * width,
    )
    yield Op("rope", moved_bytes=(6 if mixer.qk_norm else 4) * (q + kv), saved=head_norm, forward_work_bytes=q + kv)
    yield Op(
        "attention",
        part="core_attn",
        attention_flops=4 * positions * tokens * heads * mixer.head_dim,
        attention_scores=0.0 if "attention" in sizes.plain else positions * tokens * heads,
        moved_bytes=weights_bytes(tokens * heads, sizes) + merged_bytes(q, sizes),
        saved=(
            *queries,
            *keys,
            *kept_weights(tokens * heads, sizes),
            *((Saved("biases", biases, "core_attn"),) if biases else ()),
            Saved("context", q, for_weight=mixer.gate == "none"),
        ),
        comms=tuple(context_comms(spread, sizes)),
        forward_work_bytes=exchange.forward + biases,
        backward_work_bytes=2 * q + kv_kept(spread, sizes) + exchange.backward,
    )
    if mixer.gate != "none":
        gates = tokens * heads * width * (mixer.head_dim if mixer.gate == "element" else 1)
        of_heads = mixer.gate == "head"
        yield Op(
            "gate",
            gemms=((sizes.own_tokens, sizes.hidden, mixer.heads),) if of_heads else (),
            moved_bytes=2 * q + gates,
            saved=(Saved("gates", gates), Saved("gated_context", q, for_weight=True)),
            comms=tuple(_head_gate_comms(gates, sizes)) if of_heads else (),
            backward_work_bytes=q + gates,
        )
    yield out_op(tokens * heads * mixer.head_dim, heads * mixer.head_dim, sizes)


def _head_gate_comms(own: int, sizes: Sizes) -> Iterator[Comm]:
    """Of gates that ranks make for all heads: under sp of their own tokens, else of the same ones."""
    if sizes.tp > 1 and sizes.sp:
        yield from (Comm(phase, "all_to_all", "tp", own) for phase in "FB")
    elif sizes.tp > 1:
        yield Comm("B", "all_gather", "tp", own * sizes.tp)


def alibi_bytes(mixer: Attention, sizes: Sizes) -> int:
    """Of the biases of all pairs of positions on this rank, where they are given to the kernel, scaled in each layer.

    Source:
        Ascend/MindSpeed-LLM 2.0.0, core/transformer/dot_product_attention.py, ``pse``.
    """
    written = mixer.positions == "alibi" and "alibi" in sizes.plain
    return sizes.tokens * sizes.seq_len * mixer.heads // sizes.tp * sizes.width if written else 0


def weights_bytes(rows: int, sizes: Sizes) -> int:
    """Memory traffic of attention's weights, where they exist: products, masked softmax and dropout pass over them."""
    if "attention" not in sizes.plain:
        return 0
    passes = 6 * sizes.width + 1 if sizes.dropout else 4 * sizes.width
    return rows * sizes.seq_len * passes


def kept_weights(rows: int, sizes: Sizes) -> Iterator[Saved]:
    """What is kept of attention's weights: two statistics a row, or all of them, before and after dropout.

    Source:
        Korthikanti et al., arXiv 2205.05198, section 4.1: 5as^2b bytes with dropout, 2as^2b without.
    """
    if "attention" not in sizes.plain:
        yield Saved("statistics", rows * STATISTICS_BYTES, "core_attn")
        return
    weights = rows * sizes.seq_len
    yield Saved("softmax", weights * sizes.width, "core_attn")
    if sizes.dropout:
        yield Saved("weights_mask", weights, "core_attn")
        yield Saved("dropped_weights", weights * sizes.width, "core_attn")


def out_op(elements: int, rows: int, sizes: Sizes) -> Op:
    """The projection of ``rows`` features on this rank back to the stream; ``elements`` are those of its input."""
    return Op(
        "linear_proj",
        gemms=((sizes.tokens, rows, sizes.hidden),),
        comms=tuple(row_comms(sizes)),
        saved=dropped(sizes),
        forward_work_bytes=whole(sizes) + sizes.own_tokens * sizes.hidden * sizes.width,
        backward_work_bytes=whole(sizes) + (elements + sizes.hidden * rows) * sizes.width,
    )
