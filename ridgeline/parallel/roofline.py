"""Where each operation's forward stands under the chip's roof: its FLOPs, its memory traffic, its planned time.

    intensity      FLOPs / bytes
    roof           min(cube peak, intensity * HBM bandwidth)

A matrix product reads both its factors and writes their product; attention reads and writes what it saves for its
backward; of any other operation FLOPs are not counted, since memory traffic alone gives its time.

Source:
    Williams, Waterman, Patterson 2009, "Roofline: an insightful visual performance model".
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ridgeline.core.cluster import Chip
from ridgeline.core.job import Job
from ridgeline.parallel.costs import Costs, costs_of, op_parts
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.ops import Op
from ridgeline.parallel.work import StageWork


class OpPoint(NamedTuple):
    """One operation's forward on one rank, its communication left out.

    Attributes:
        name: Within its layer.
        times: How often the pipeline runs it for one microbatch.
        flops, moved_bytes, us: Of one run.
    """

    name: str
    times: int
    flops: float
    moved_bytes: int
    us: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.moved_bytes

    @property
    def flops_per_s(self) -> float:
        """What the plan counts on."""
        return self.flops / self.us * 1e6

    @property
    def bytes_per_s(self) -> float:
        """What the plan counts on."""
        return self.moved_bytes / self.us * 1e6


def roof_flops(intensity: float, chip: Chip) -> float:
    """The most FLOP/s that a chip can reach at an intensity."""
    return min(chip.cube_flops, intensity * chip.hbm_bandwidth)


def op_points(job: Job, *, mesh: Mesh, work: Sequence[StageWork]) -> tuple[OpPoint, ...]:
    """Every operation of a model, in the order of its forward; equal ones are one point.

    What computes and moves nothing, and so takes no time of its own, has no point.
    """
    times: Counter[Op] = Counter()
    for stage in work:
        for run in stage.runs:
            for op in run.ops:
                times[op] += run.layers
    costs = costs_of(job, mesh)
    points = (_point(op, count, costs) for op, count in times.items())
    return tuple(point for point in points if point.us > 0)


def _point(op: Op, times: int, costs: Costs) -> OpPoint:
    parts, _ = op_parts(op, costs)
    flops = sum(2 * m * k * n for m, k, n in op.gemms) * op.gemm_repeats + op.attention_flops
    moved = sum(m * k + k * n + m * n for m, k, n in op.gemms) * op.gemm_repeats * costs.width + op.moved_bytes
    if op.attention_flops:
        moved += sum(saved.size_bytes for saved in op.saved)
    return OpPoint(op.name, times, flops, moved, parts.gemm + parts.attention + parts.elementwise)
