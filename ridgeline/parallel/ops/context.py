"""How queries, keys and values travel when cp splits the sequence."""

from collections.abc import Iterator
from typing import NamedTuple

from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.words import Comm


class Spread(NamedTuple):
    """Bytes of what one rank holds of queries, keys and values, and key-value heads of the whole layer."""

    q: int
    k: int
    v: int
    kv_heads: int
    context: int = 0


MERGED_BYTES = 20
"""Of an element of the context and step of a ring: the new part is merged with the sum in fp32 by plain operations,
62 bytes for the three quarters of rows that are merged, and its gradients added, 12 bytes; told as one forward and a
backward of twice that. MindSpeed 2.0.0_core_r0.8.0, core/context_parallel/ring_context_parallel.py."""


def merged_bytes(context: int, sizes: Sizes) -> int:
    """Memory traffic of merging the parts of attention that a ring makes, of a context of so many bytes."""
    return (sizes.ring - 1) * context // sizes.width * MERGED_BYTES


def context_comms(spread: Spread, sizes: Sizes) -> Iterator[Comm]:
    """The collectives of attention over a sequence that cp ranks share.

    Keys and values go round a ring as they are after heads have changed places: fewer heads of more positions.
    """
    context, kv = spread.context or spread.q, kv_kept(spread, sizes)
    parted = sizes.ring > 1 and sizes.ulysses > 1
    if sizes.gathers_kv:
        yield Comm("F", "all_gather", "cp", kv * sizes.cp)
        yield Comm("B", "all_gather", "cp", kv * sizes.cp)
        yield Comm("B", "reduce_scatter", "cp", kv * sizes.cp)
    if sizes.ulysses > 1:
        keys = (spread.q, context) if _repeats(spread, sizes) else (spread.k, spread.v)
        for phase in ("F", "B"):
            for size in (spread.q, context, *keys):
                yield Comm(phase, "all_to_all", "ulysses" if parted else "cp", size)
    if sizes.ring > 1:
        axes = "ring" if parted else "cp"
        yield Comm("F", "p2p", axes, kv, repeats=sizes.ring - 1, beside=True)
        # Those keys and values once more, and behind them their gradients.
        yield Comm("B", "p2p", axes, kv, repeats=2 * (sizes.ring - 1), beside=True)


class ContextWork(NamedTuple):
    """Bytes that attention over a shared sequence takes while it runs."""

    forward: int
    backward: int


def context_work(spread: Spread, sizes: Sizes) -> ContextWork:
    """What the exchange of queries, keys and values holds beside them.

    A ring receives the next keys and values while it works on these, and sums its output, and later the gradients of
    keys and values, in fp32. Heads change places by copies. A gather holds the keys and values of the whole sequence.

    Source:
        Ascend/MindSpeed 2.0.0_core_r0.8.0, core/context_parallel: ring_context_parallel.py and
        ulysses_context_parallel.py.
    """
    kv, context = kv_kept(spread, sizes), spread.context or spread.q
    fp32 = 4 // sizes.width
    forward = backward = 0
    if sizes.gathers_kv:
        forward, backward = kv * sizes.cp, 2 * kv * sizes.cp
    if sizes.ulysses > 1:
        forward, backward = spread.q + kv, spread.q + context + kv
    if sizes.ring > 1:
        forward += 2 * kv + (1 + fp32) * context
        backward += (2 + 2 * fp32) * kv + fp32 * spread.q
    return ContextWork(forward, backward)


def kv_kept(spread: Spread, sizes: Sizes) -> int:
    """Keys and values as the kernel keeps them: for heads that change places, too few are repeated first."""
    return spread.q + (spread.context or spread.q) if _repeats(spread, sizes) else spread.k + spread.v


def _repeats(spread: Spread, sizes: Sizes) -> bool:
    return sizes.ulysses > 1 and (sizes.repeats_kv or max(1, spread.kv_heads // sizes.tp) % sizes.ulysses > 0)
