"""Clusters by name: chips and machines are data, every figure with its source.

``chips/`` holds a file a chip. ``figures`` are the vendor's; ``efficiency`` says what a step reaches of them, fitted to
measured runs or public, or names the chip whose it takes; ``step_error`` says how far measured steps lay from plans.
GEMMs run on the cube alone, so ``cube_flops`` is the cube's peak, and it divides MFU. Product pages add the vector
unit's to it (910B2: 376 = 353.9 + 22.1 TFLOP/s); such a sum is no roofline. ``machines/`` holds nodes and their links.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

from ridgeline.core.cluster import Chip, Cluster, Efficiency, Link
from ridgeline.core.data_files import read_data
from ridgeline.core.errors import Problem, SpecError, nearest

WHY_910B2 = (
    "atlas-800t-a2 names no chip; 910B2 is taken because its cube peak of 353.9 TFLOP/s is the best fit (within 3 %, "
    "inferred, never stated there) of the peak behind MindSpeed-LLM's published MFUs; another: atlas-800t-a2-910b3"
)


class Preset(NamedTuple):
    """A name's chip and machine, and why this chip where the name says none."""

    chip: str
    machine: str
    note: str = ""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "atlas-800t-a2": Preset("910B2", "a2", WHY_910B2),
        "atlas-800t-a2-910b1": Preset("910B1", "a2"),
        "atlas-800t-a2-910b2": Preset("910B2", "a2"),
        "atlas-800t-a2-910b3": Preset("910B3", "a2"),
        "atlas-900-a3": Preset("910_9382", "a3"),
        "dgx-a100": Preset("A100-80GB", "dgx-a100"),
        "cpu": Preset("cpu-core", "cpu"),
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
    chip, machine = chip_of(preset.chip), _data("machines", preset.machine)
    within_supernode = nodes <= machine.get("supernode_nodes", 1)
    return Cluster(
        name=name,
        chip=attrs.evolve(chip, source=f"{preset.note}; {chip.source}") if preset.note else chip,
        nodes=nodes,
        devices_per_node=machine["devices_per_node"] if devices_per_node is None else devices_per_node,
        intra=_link(machine["intra"]),
        inter=_link(machine["intra" if within_supernode and "supernode_nodes" in machine else "inter"]),
    )


@cache
def chip_of(name: str) -> Chip:
    """The chip whose data file has this name."""
    data = _data("chips", name)
    figures: dict[str, Any] = {key: figure["value"] for key, figure in data["figures"].items()}
    shares = data["efficiency"]
    if isinstance(shares, str):
        shares = _data("chips", shares)["efficiency"]
    sources = dict.fromkeys(figure["source"] for figure in data["figures"].values())
    return Chip(
        name=data["name"],
        device=data["device"],
        **figures,
        efficiency=Efficiency(**{key: share["value"] for key, share in shares.items()}),
        step_error=data["step_error"]["value"] if "step_error" in data else None,
        source="; ".join((data["note"], *sources) if "note" in data else sources),
    )


def _link(data: Mapping[str, Any]) -> Link:
    return Link(**{key: value for key, value in data.items() if key != "source"})


@cache
def _data(folder: str, name: str) -> Mapping[str, Any]:
    return read_data(__file__, folder, name)
