"""What every layer does to the residual stream: norms, additions, and the collectives around split linears."""

from collections.abc import Iterator

from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.words import Comm, Op, Saved


def whole(sizes: Sizes) -> int:
    """A full activation beside the rank's own part of it, where tp splits the stream."""
    return sizes.tokens * sizes.hidden * sizes.width if sizes.tp > 1 else 0


def norm(name: str, saves: str, sizes: Sizes) -> Op:
    """A norm of the stream: it saves its input and fp32 statistics, a LayerNorm two a token."""
    elements = sizes.own_tokens * sizes.hidden
    stream = elements * sizes.width
    kept = (Saved(saves, stream), Saved("rstd", sizes.own_tokens * (8 if sizes.norm == "layer" else 4)))
    moved = 2 * stream
    if "norm" in sizes.plain and sizes.norm != "layer":  # which torch has a kernel for
        kept = (Saved(saves, elements * 4), Saved("normalized", stream))
        moved = 6 * stream + 24 * elements  # cast, square, mean, scale and cast back in fp32, then the weight
    return Op(name, part="layernorm" if name != "final_layernorm" else "", moved_bytes=moved, saved=kept)


def dropped(sizes: Sizes) -> tuple[Saved, ...]:
    """Which elements dropout let through before an addition to the stream, a byte each."""
    return (Saved("dropout_mask", sizes.own_tokens * sizes.hidden),) if sizes.dropout else ()


def add(name: str, sizes: Sizes) -> Op:
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    return Op(name, moved_bytes=3 * stream, forward_work_bytes=stream)


def column_comms(sizes: Sizes, *, features: int = 0) -> Iterator[Comm]:
    """Around a linear that splits its output; its backward's run beside its two products.

    Its input has ``features``, by default the stream's.
    """
    whole = sizes.tokens * (features or sizes.hidden) * sizes.width
    if sizes.tp > 1 and sizes.sp:
        yield Comm("F", "all_gather", "tp", whole)
        yield Comm("B", "all_gather", "tp", whole, beside=True)
        yield Comm("B", "reduce_scatter", "tp", whole, beside=True)
    elif sizes.tp > 1:
        yield Comm("B", "all_reduce", "tp", whole, beside=True)


def row_comms(sizes: Sizes) -> Iterator[Comm]:
    """Around a linear or an embedding that splits its input."""
    whole = sizes.tokens * sizes.hidden * sizes.width
    if sizes.tp > 1 and sizes.sp:
        yield Comm("F", "reduce_scatter", "tp", whole)
        yield Comm("B", "all_gather", "tp", whole)
    elif sizes.tp > 1:
        yield Comm("F", "all_reduce", "tp", whole)
