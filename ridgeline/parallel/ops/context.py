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
    ring = sizes.cp_algorithm == "ring"
    return (sizes.cp - 1) * context // sizes.width * MERGED_BYTES if ring else 0


def context_comms(spread: Spread, sizes: Sizes) -> Iterator[Comm]:
    """The collectives of attention over a sequence that cp ranks share."""
    if sizes.cp == 1:
        return
    kv, context = spread.k + spread.v, spread.context or spread.q
    if sizes.cp_algorithm == "ring":
        yield Comm("F", "p2p", "cp", kv, repeats=sizes.cp - 1, beside=True)
        yield Comm("B", "p2p", "cp", 2 * kv, repeats=sizes.cp - 1, beside=True)
    elif sizes.cp_algorithm == "kv_allgather":
        yield Comm("F", "all_gather", "cp", kv * sizes.cp)
        yield Comm("B", "all_gather", "cp", kv * sizes.cp)
        yield Comm("B", "reduce_scatter", "cp", kv * sizes.cp)
    else:
        repeated = spread.kv_heads // sizes.tp < sizes.cp  # too few kv heads are repeated first
        for phase in ("F", "B"):
            for size in (spread.q, context, *((spread.q, context) if repeated else (spread.k, spread.v))):
                yield Comm(phase, "all_to_all", "cp", size)


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
    if sizes.cp == 1:
        return ContextWork(0, 0)
    kv, context = spread.k + spread.v, spread.context or spread.q
    fp32 = 4 // sizes.width
    if sizes.cp_algorithm == "ring":
        return ContextWork(2 * kv + (1 + fp32) * context, (2 + 2 * fp32) * kv + fp32 * spread.q)
    if sizes.cp_algorithm == "kv_allgather":
        return ContextWork(kv * sizes.cp, 2 * kv * sizes.cp)
    return ContextWork(spread.q + kv_kept(spread, sizes), spread.q + context + kv_kept(spread, sizes))


def kv_kept(spread: Spread, sizes: Sizes) -> int:
    """Keys and values as the kernel keeps them: for heads that change places, too few are repeated first."""
    repeated = sizes.cp > 1 and sizes.cp_algorithm == "ulysses" and spread.kv_heads // sizes.tp < sizes.cp
    return spread.q + (spread.context or spread.q) if repeated else spread.k + spread.v
