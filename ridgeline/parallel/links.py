"""How long a collective takes, by where its group lies: within a node over its links, across nodes over the network.

    within, full mesh   a link to each peer, used together: bytes per peer / link
    within, switched    one port: bytes to all others / port
    across              each of a node's k members carries 1/k of what crosses, then spreads it within the node

Source:
    Full mesh: MindSpeed's regression takes traffic/(n-1) on 910B, plain traffic elsewhere. Bandwidths: the cluster's.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ridgeline.core.cluster import Cluster, Link
from ridgeline.parallel.mesh import Mesh, group_of


class Spread(NamedTuple):
    """Where a group lies: how many nodes it touches, and how many of its ranks lie on each."""

    nodes: int
    per_node: int

    @property
    def size(self) -> int:
        """Ranks."""
        return self.nodes * self.per_node


def spread_of(axes: str, mesh: Mesh, cluster: Cluster) -> Spread:
    """Where the groups over some axes lie, by that of rank 0."""
    return spread_of_ranks(group_of(0, mesh, axes), cluster)


def spread_of_ranks(ranks: Sequence[int], cluster: Cluster) -> Spread:
    """Where some ranks lie; of unequal nodes, the fullest counts."""
    per_node = Counter(rank // cluster.devices_per_node for rank in ranks)
    return Spread(len(per_node), max(per_node.values()))


def collective_us(kind: str, size_bytes: int, spread: Spread, cluster: Cluster) -> float:
    """Time of one collective.

    Args:
        kind: As of ``Collective``.
        size_bytes: The whole tensor, or what one rank sends in all.
        spread: Where its group lies.
        cluster: The links.

    Example:
        >>> from ridgeline.parallel.clusters import cluster_preset
        >>> a2 = cluster_preset("atlas-800t-a2", 2)
        >>> us = collective_us("all_gather", 8 * 28_000_000, Spread(1, 8), a2)  # 28 MB from each peer, at 28 GB/s
        >>> round((us - a2.intra.latency_us) * a2.intra.efficiency)
        1000
    """
    if spread.size == 1:
        return 0.0
    if kind == "all_reduce":
        return 2 * collective_us("reduce_scatter", size_bytes, spread, cluster)
    if kind in ("p2p", "broadcast"):
        link = cluster.intra if spread.nodes == 1 else cluster.inter
        return link.latency_us + _us(size_bytes, link)
    if kind == "all_to_all":
        within = _within_us(size_bytes * spread.per_node // spread.size, spread.per_node, cluster.intra)
        across = size_bytes * (spread.nodes - 1) // spread.nodes
    else:
        within = _within_us(size_bytes, spread.per_node, cluster.intra)
        across = size_bytes // spread.per_node * (spread.nodes - 1) // spread.nodes
    return within if spread.nodes == 1 else within + cluster.inter.latency_us + _us(across, cluster.inter)


def _within_us(size_bytes: int, ranks: int, link: Link) -> float:
    """Each rank's share of ``size_bytes`` to or from each of its peers on a node."""
    if ranks == 1:
        return 0.0
    peers = 1 if link.topology == "full_mesh" else ranks - 1
    return link.latency_us + _us(size_bytes // ranks * peers, link)


def _us(size_bytes: int, link: Link) -> float:
    return size_bytes / (link.bandwidth * link.efficiency) * 1e6
