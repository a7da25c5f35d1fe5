"""What a search found, and what it looked at to know that nothing is better."""

from typing import Any

from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.search.grid import Grid, Point


@frozen(kw_only=True)
class Found:
    """A layout with the numbers of its plan.

    Attributes:
        total_bytes: What its fullest rank needs.
        lowering_faults: Why this runtime cannot run it yet; empty when it can.
    """

    point: Point
    job: Job
    total_bytes: int
    capacity_bytes: int
    step_us: float
    tokens_per_s: float
    mfu_full: float
    mfu_causal: float
    lowering_faults: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the devices are large enough."""
        return self.total_bytes <= self.capacity_bytes


@frozen(kw_only=True)
class Neighbour:
    """A layout that differs from the best in one axis, and why it loses.

    Attributes:
        axis: Which.
        value: What it is here.
        found: Its numbers; None where no plan exists.
        slower: Its step time over the best one's, less 1; below 0 where it is faster but does not fit.
        over_bytes: What its fullest rank needs beyond the device; below 0 where it fits.
        refused: Why there is no plan, or why this runtime does not run it; empty otherwise.
    """

    axis: str
    value: Any
    found: Found | None
    slower: float = 0.0
    over_bytes: int = 0
    refused: str = ""


@frozen(kw_only=True)
class Counts:
    """How a grid was covered: every point is in one of the first five.

    Attributes:
        planned: Time and memory worked out.
        slower: Ruled out by a bound of their time, one by one or whole branches.
        larger: Ruled out by a bound of their memory.
        refused: Without a plan, or not run by this runtime.
        branches: Shapes, schemes and layouts whose bound was worked out.
        bound_us: No layout that was not planned takes less time, unless it does not fit.
    """

    points: int
    planned: int
    slower: int
    larger: int
    refused: int
    branches: int
    bound_us: float


@frozen(kw_only=True)
class Shortage:
    """What lacks when nothing fits.

    Attributes:
        least: The layout that needs the least memory.
        over_bytes: By how much it exceeds a device.
        nodes: The fewest nodes, of 2, 4, ... 64 times as many, on which a layout fits that recomputes whole layers and
            has the smallest microbatch, where the grid has such; None where none does.
    """

    least: Found
    over_bytes: int
    nodes: int | None


@frozen(kw_only=True)
class SearchResult:
    """The fastest layout that fits, and what surrounds it.

    Attributes:
        grid: What was searched.
        best: The fastest that fits; None where none does.
        ranked: The best layouts of the fastest meshes, the very best first.
        front: Layouts of which none is both faster and smaller, fastest first.
        front_within: The front ends at this many times the best step.
        neighbours: Of the best, one axis changed at a time.
        counts: How the grid was covered.
        shortage: What lacks, where nothing fits.
    """

    grid: Grid
    best: Found | None
    ranked: tuple[Found, ...]
    front: tuple[Found, ...]
    front_within: float
    neighbours: tuple[Neighbour, ...]
    counts: Counts
    shortage: Shortage | None = None


def found_of(point: Point, plan: Plan) -> Found:
    """The numbers of a plan."""
    peak, time = plan.peak, plan.time
    return Found(
        point=point,
        job=plan.job,
        total_bytes=peak.total_bytes,
        capacity_bytes=peak.capacity_bytes,
        step_us=time.step_us,
        tokens_per_s=time.tokens_per_s,
        mfu_full=time.mfu_full,
        mfu_causal=time.mfu_causal,
    )
