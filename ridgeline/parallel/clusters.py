"""Clusters by name: chips, nodes and links as data, each figure with its source.

GEMMs run on the cube alone, so ``cube_flops`` is the cube's peak, and it divides MFU. Product pages add the vector
unit's to it (910B2: 376 = 353.9 + 22.1 TFLOP/s); such a sum is no roofline.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.cluster import Chip, Cluster, Link
from ridgeline.core.errors import Problem, SpecError, nearest

GIB = 2**30
A3_SUPERNODE_NODES = 48  # 384 modules of two dies, 8 modules a node: UB reaches this far, RoCE beyond

ASCEND_SOURCE = (
    "cube = cores * MHz * 16^3 * 2, vector = cores * MHz * 128 * 2, 64 GiB: CANN runtime platform_config; "
    "HBM 1.6 TB/s: Atlas 800T A2 product page; 4.5 GiB for CANN and the runtime: MindSpeed's auto-tuner"
)
WHY_910B2 = (
    "atlas-800t-a2 names no chip; 910B2 is taken because its cube peak of 353.9 TFLOP/s is the best fit (within 3 %, "
    "inferred, never stated there) of the peak behind MindSpeed-LLM's published MFUs; another: atlas-800t-a2-910b3"
)
CPU_SOURCE = "round figures for one core, for trying layouts out; nothing is promised about their speed"


class AscendChip(NamedTuple):
    """What distinguishes one Ascend chip from another: cube cores (each has two vector cores) and their clock."""

    name: str
    cube_cores: int
    mhz: int
    note: str = ""


class Preset(NamedTuple):
    """A name's chip and machine."""

    chip: AscendChip | None
    machine: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "atlas-800t-a2": Preset(AscendChip("910B2", 24, 1800, WHY_910B2), "a2"),
        "atlas-800t-a2-910b1": Preset(AscendChip("910B1", 24, 1850), "a2"),
        "atlas-800t-a2-910b2": Preset(AscendChip("910B2", 24, 1800), "a2"),
        "atlas-800t-a2-910b3": Preset(AscendChip("910B3", 20, 1800), "a2"),
        "atlas-900-a3": Preset(
            AscendChip("910_9382", 24, 1800, "one of the two dies of an A3 module; a rank is a die"), "a3"
        ),
        "cpu": Preset(None, "cpu"),
    }
)


def cluster_preset(name: str, nodes: int = 1, *, devices_per_node: int | None = None) -> Cluster:
    """The cluster of this name, with ``nodes`` nodes.

    Args:
        name: One of ``PRESETS``.
        nodes: Number of nodes.
        devices_per_node: Ranks a node; None takes the machine's own (8 on A2, 16 dies on A3, 1 on cpu).

    Raises:
        SpecError: No cluster has this name, or a number is below 1.

    Example:
        >>> cluster_preset("atlas-800t-a2", 2).world_size
        16
    """
    if name not in PRESETS:
        raise SpecError(Problem("cluster", name, "unknown", nearest(name, PRESETS)))
    preset = PRESETS[name]
    ranks, intra, inter = _machine(preset.machine, nodes)
    return Cluster(
        name=name,
        chip=_ascend_chip(preset.chip) if preset.chip else _cpu_chip(),
        nodes=nodes,
        devices_per_node=ranks if devices_per_node is None else devices_per_node,
        intra=intra,
        inter=inter,
    )


def _ascend_chip(row: AscendChip) -> Chip:
    return Chip(
        name=row.name,
        cube_flops=row.cube_cores * row.mhz * 1e6 * 16**3 * 2,
        vector_flops=2 * row.cube_cores * row.mhz * 1e6 * 128 * 2,
        hbm_bytes=64 * GIB,
        hbm_bandwidth=1.6e12,
        reserved_bytes=9 * GIB // 2,
        source=f"{row.note}; {ASCEND_SOURCE}" if row.note else ASCEND_SOURCE,
    )


def _cpu_chip() -> Chip:
    return Chip(
        name="cpu-core",
        device="cpu",
        cube_flops=5e10,
        vector_flops=1e10,
        hbm_bytes=8 * GIB,
        hbm_bandwidth=1e10,
        source=CPU_SOURCE,
    )


def _machine(machine: str, nodes: int) -> tuple[int, Link, Link]:
    """Ranks a node, the link within it, and the link between nodes."""
    if machine == "cpu":
        return 1, Link(bandwidth=1e9, latency_us=50.0), Link(bandwidth=1e8, latency_us=100.0)
    roce = Link(bandwidth=25e9, latency_us=10.0)  # 200 Gb/s an NPU, both generations: product pages
    if machine == "a2":
        # 7 HCCS links, 392 GB/s in and out together, so 28 GB/s a link and direction: Atlas 800T A2 product page;
        # 2 us a task: HCCL cost_model.cc
        return 8, Link(topology="full_mesh", bandwidth=28e9, latency_us=2.0), roce
    # 784 GB/s in and out together between any two modules, so 196 GB/s a die and direction: arXiv 2506.12708
    ub = Link(bandwidth=196e9, latency_us=2.0)
    return 16, ub, ub if nodes <= A3_SUPERNODE_NODES else roce
