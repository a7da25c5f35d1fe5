"""What each collective of a step puts on the links within and between nodes, and how long it takes by itself.

    gather, scatter     a rank sends (n-1)/n of the tensor: to its node's peers, and 1/k of it across
    reduce              both, so twice that
    all-to-all          1/n of what it holds to each other rank
    p2p, broadcast      the tensor, over the one link between two ranks

Algorithms as of ``ridgeline.parallel.links``: k members of a node each carry 1/k of what crosses.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ridgeline.core.job import Job
from ridgeline.parallel.collectives import Collective
from ridgeline.parallel.links import Spread, collective_us, spread_of, spread_of_ranks
from ridgeline.parallel.mesh import Mesh, embedding_ranks, group_of
from ridgeline.parallel.stages import StageMap


class LinkUse(NamedTuple):
    """Equal collectives of a step, on the pipeline rank that has the most of them.

    Attributes:
        collective: What is sent.
        spread: Where its group lies; of transfers between stages the widest pair.
        intra_bytes, inter_bytes: What a rank sends in a step within its node and across nodes.
        us: Of all of them in a step, one after the other, whether or not compute hides them.
    """

    collective: Collective
    spread: Spread
    intra_bytes: int
    inter_bytes: int
    us: float


def link_uses(job: Job, *, mesh: Mesh, stages: StageMap, collectives: Sequence[Collective]) -> tuple[LinkUse, ...]:
    """The use of links of each of a step's collectives, in their order."""
    return tuple(_link_use(row, job, mesh, stages) for row in collectives)


def sent_bytes(kind: str, size_bytes: int, spread: Spread) -> tuple[int, int]:
    """What one rank sends in a collective within its node and across nodes.

    Example:
        >>> sent_bytes("all_gather", 1600, Spread(2, 8)), sent_bytes("all_reduce", 1600, Spread(1, 8))
        ((1400, 100), (2800, 0))
    """
    nodes, each = spread
    if spread.size == 1:
        return 0, 0
    if kind == "all_reduce":
        within, across = sent_bytes("reduce_scatter", size_bytes, spread)
        return 2 * within, 2 * across
    if kind in ("p2p", "broadcast"):
        return (size_bytes, 0) if nodes == 1 else (0, size_bytes)
    if kind == "all_to_all":
        return size_bytes * (each - 1) // spread.size, size_bytes * (nodes - 1) // nodes
    return size_bytes * (each - 1) // each, size_bytes // each * (nodes - 1) // nodes


def _link_use(row: Collective, job: Job, mesh: Mesh, stages: StageMap) -> LinkUse:
    if row.kind == "p2p" and row.axes == "pp":
        return _between_stages(row, job, mesh, stages)
    if row.joins_ends:
        spread = spread_of_ranks(embedding_ranks(group_of(0, mesh, "pp")), job.cluster)
    else:
        spread = spread_of(row.axes, mesh, job.cluster)
    count = max(row.counts)
    within, across = sent_bytes(row.kind, row.size_bytes, spread)
    us = collective_us(row.kind, row.size_bytes, spread, job.cluster) * count
    return LinkUse(row, spread, within * count, across * count, us)


def _between_stages(row: Collective, job: Job, mesh: Mesh, stages: StageMap) -> LinkUse:
    """Transfers to the next stage, or from it, each over the links between the two ranks that own them."""
    pipeline = group_of(0, mesh, "pp")
    uses = [LinkUse(row, Spread(1, 1), 0, 0, 0.0)] * mesh.pp
    for pair in pairwise(range(stages.num_stages)):
        sender, receiver = (stages.owner(stage) for stage in (pair if row.phase == "forward" else pair[::-1]))
        if sender == receiver:
            continue
        spread = spread_of_ranks((pipeline[sender], pipeline[receiver]), job.cluster)
        within, across = sent_bytes("p2p", row.size_bytes, spread)
        us = collective_us("p2p", row.size_bytes, spread, job.cluster)
        before, count = uses[sender], job.num_microbatches
        uses[sender] = LinkUse(
            row,
            max(before.spread, spread),
            before.intra_bytes + within * count,
            before.inter_bytes + across * count,
            before.us + us * count,
        )
    return max(uses, key=lambda use: use.us)
