"""What an operation says of itself: what it computes, moves, saves for its backward, and communicates."""

from typing import NamedTuple


class Saved(NamedTuple):
    """A tensor kept from forward to backward; recomputing a part that ``dropped_by`` names does without it.

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
        beside: Queued beside its operation's own compute, whatever the job says of overlap.
        in_graph: Of a forward that a backward follows; one that is run again leaves it out the first time.
    """

    phase: str
    kind: str
    axes: str
    size_bytes: int
    repeats: int = 1
    beside: bool = False
    in_graph: bool = False


class Op(NamedTuple):
    """One operation.

    Attributes:
        name: Within its layer.
        part: What recompute calls the part it belongs to, or "".
        gemms: Matrix products of the forward, ``(m, k, n)``; the backward has two of each.
        gemm_repeats: How often each runs, once an expert.
        attention_flops: Of the attention kernel's forward.
        attention_scores: Of that kernel: pairs of positions, over all heads.
        moved_bytes: Memory traffic of a forward that is no matrix product.
        scattered: That traffic gathers or scatters tokens by index.
        saved: Tensors it keeps that no other operation of the layer keeps already.
        comms: Its collectives.
        forward_work_bytes, backward_work_bytes: Tensors alive only while it runs, beyond those saved.
        backward_share: Of the usual work of a backward what this one does, communication apart.
    """

    name: str
    part: str = ""
    gemms: tuple[tuple[int, int, int], ...] = ()
    gemm_repeats: int = 1
    attention_flops: float = 0.0
    attention_scores: float = 0.0
    moved_bytes: int = 0
    scattered: bool = False
    saved: tuple[Saved, ...] = ()
    comms: tuple[Comm, ...] = ()
    forward_work_bytes: int = 0
    backward_work_bytes: int = 0
    backward_share: float = 1.0


def kept(ops: tuple[Op, ...], recomputed: tuple[str, ...]) -> int:
    """Bytes that operations keep for their backward when some parts are recomputed."""
    return sum(saved.size_bytes for op in ops for saved in op.saved if not _is_dropped(saved, recomputed))


def _is_dropped(saved: Saved, recomputed: tuple[str, ...]) -> bool:
    return bool(recomputed) and any(part in recomputed for part in saved.dropped_by.split())


def deferred(ops: tuple[Op, ...], width: int) -> int:
    """Bytes that a split backward keeps from its input gradients to its weight gradients.

    Both factors of each product that is a weight gradient: a matrix product's input and its output's gradient.

    Source:
        Qi et al., arXiv 2401.10241, table 1: 32sbh bytes a layer of which 14 are inputs and 18 gradients.
    """
    inputs = sum(saved.size_bytes for op in ops for saved in op.saved if saved.for_weight)
    return inputs + width * sum(m * n * op.gemm_repeats for op in ops for m, _, n in op.gemms)
