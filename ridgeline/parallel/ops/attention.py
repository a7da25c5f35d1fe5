"""Attention: the fused projection, rotary positions, the kernel, the projection back."""

from collections.abc import Iterator

from ridgeline.core.flops import attended_positions
from ridgeline.core.model import Attention
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, dropped, row_comms, whole
from ridgeline.parallel.ops.words import Comm, Op, Saved

STATISTICS_BYTES = 2 * 8 * 4  # softmax max and sum, 8 fp32 lanes a row each


def attention_ops(mixer: Attention, sizes: Sizes) -> tuple[Op, ...]:
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
            comms=(*column_comms(sizes), *gather),
            forward_work_bytes=fused,
            backward_work_bytes=2 * fused + qkv_columns * sizes.hidden * width,
        ),
        Op("rope", moved_bytes=(6 if mixer.qk_norm else 4) * (q + kv), saved=head_norm, forward_work_bytes=q + kv),
        Op(
            "attention",
            part="core_attn",
            attention_flops=4 * positions * tokens * heads * mixer.head_dim,
            attention_scores=positions * tokens * heads,
            saved=(
                Saved("q", q),
                Saved("k", kv),
                Saved("v", v),
                *_weights(tokens * heads, sizes),
                Saved("context", q, for_weight=True),
            ),
            comms=tuple(_context_comms(mixer, sizes, q, kv)),
            backward_work_bytes=2 * q + 2 * kv,
        ),
        Op(
            "linear_proj",
            gemms=((tokens, heads * mixer.head_dim, sizes.hidden),),
            comms=tuple(row_comms(sizes)),
            saved=dropped(sizes),
            forward_work_bytes=whole(sizes) + stream,
            backward_work_bytes=whole(sizes) + q + sizes.hidden * heads * mixer.head_dim * width,
        ),
    )


def _weights(rows: int, sizes: Sizes) -> Iterator[Saved]:
    """What is kept of attention's weights: two statistics a row, or all of them, before and after dropout.

    Source:
        Korthikanti et al., arXiv 2205.05198, section 4.1: 5as^2b bytes with dropout, 2as^2b without.
    """
    if not sizes.plain_attention:
        yield Saved("statistics", rows * STATISTICS_BYTES, "core_attn")
        return
    weights = rows * sizes.seq_len
    yield Saved("softmax", weights * sizes.width, "core_attn")
    if sizes.dropout:
        yield Saved("weights_mask", weights, "core_attn")
        yield Saved("dropped_weights", weights * sizes.width, "core_attn")


def _context_comms(mixer: Attention, sizes: Sizes, q: int, kv: int) -> Iterator[Comm]:
    if sizes.cp == 1:
        return
    if sizes.cp_algorithm == "ring":
        yield Comm("F", "p2p", "cp", 2 * kv, repeats=sizes.cp - 1, beside=True)
        yield Comm("B", "p2p", "cp", 4 * kv, repeats=sizes.cp - 1, beside=True)
    elif sizes.cp_algorithm == "kv_allgather":
        yield Comm("F", "all_gather", "cp", 2 * kv * sizes.cp)
        yield Comm("B", "all_gather", "cp", 2 * kv * sizes.cp)
        yield Comm("B", "reduce_scatter", "cp", 2 * kv * sizes.cp)
    else:
        spread = kv if mixer.kv_heads // sizes.tp >= sizes.cp else q  # too few kv heads are repeated first
        for phase in ("F", "B"):
            yield Comm(phase, "all_to_all", "cp", q, repeats=2)
            yield Comm(phase, "all_to_all", "cp", spread, repeats=2)
