"""What a traced step of one rank did, and how it lies beside the plan: memory by component, collectives by group.

A trace executes the rank's real program with tensors that hold no numbers, so that its bytes are those of the program
and not of a model of it. What no tensor shows is not in it: the runtime's reserve, fragments, and what a kernel
allocates inside.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ridgeline.core.frozen import frozen
from ridgeline.parallel.mesh import Mesh, group_of, rank_coords
from ridgeline.parallel.over_time import Point, memory_over_time
from ridgeline.parallel.plan import Plan

STATES = ("params", "grads", "masters", "moments")
"""Components that live longer than a step, as `over_time.Point` names them."""


class TracedAction(NamedTuple):
    """One action of the schedule, or ``update``.

    Attributes:
        at: The action, ``2F0``, or ``update``.
        peak_bytes: Of all tensors, at its worst moment.
        after_bytes: Once it is over.
        module: That ran at its worst moment.
    """

    at: str
    peak_bytes: int
    after_bytes: int
    module: str


class TracedOp(NamedTuple):
    """Equal operations of a step.

    Attributes:
        phase: ``forward``, ``recompute``, ``backward`` or ``step``.
        module: Where it ran, layers and experts as ``*``.
        op: ``aten::mm``.
        times: How often.
        flops: Of all together; of attention over the whole rectangle of queries and keys.
        size_bytes: Read and written, of all together.
    """

    phase: str
    module: str
    op: str
    times: int
    flops: int
    size_bytes: int


class TracedCollective(NamedTuple):
    """Equal collectives of a step.

    Attributes:
        kind: As of `collectives.Collective`.
        ranks: Of its group; of ``p2p`` this rank and its peer.
        size_bytes: The whole tensor, as of `collectives.Collective`.
        times: How often.
        phase: As of `TracedOp`.
        module: Where it ran.
    """

    kind: str
    ranks: tuple[int, ...]
    size_bytes: int
    times: int
    phase: str
    module: str


class Sample(NamedTuple):
    """The memory of a moment: after how many operations of the step, in which action and module, and the bytes."""

    ops: int
    at: str
    module: str
    live_bytes: int


@frozen(kw_only=True)
class Trace:
    """One step of one rank, a later one, whose optimizer has its moments.

    Attributes:
        rank: Of the world.
        actions: In order, the update last.
        peak: The live bytes at the worst moment of the step, by component: those of `STATES`, and every module that
            made what lives, largest first.
        ops: By phase, module and op, in order of first use.
        collectives: By phase, module, group and size, in order of first use.
        samples: Memory over time: at the end of every module, and at every peak.
        reads: Places where the program read a number that no trace has, with how often: 1.0 was answered.
        seconds: Of one core, that tracing took.
    """

    rank: int
    actions: tuple[TracedAction, ...]
    peak: tuple[tuple[str, int], ...]
    ops: tuple[TracedOp, ...]
    collectives: tuple[TracedCollective, ...]
    samples: tuple[Sample, ...]
    reads: tuple[tuple[str, int], ...]
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """At the worst moment of the step."""
        return max(action.peak_bytes for action in self.actions)

    @property
    def flops(self) -> int:
        """Of all operations."""
        return sum(op.flops for op in self.ops)


class MemoryRow(NamedTuple):
    """One component at the peak, planned and traced, in bytes."""

    component: str
    planned: int
    traced: int


class CollectiveRow(NamedTuple):
    """Equal collectives, planned and traced.

    Attributes:
        axes: Of the mesh, as the plan or, where it plans none, the ranks themselves tell.
    """

    kind: str
    axes: str
    group_size: int
    size_bytes: int
    planned: int
    traced: int
    why: str


@frozen(kw_only=True)
class Comparison:
    """A trace beside its plan.

    Attributes:
        actions: Of each action and the update the plan's point and the trace's.
        memory: The components of both peaks.
        collectives: Every collective of either.
    """

    actions: tuple[tuple[Point, TracedAction], ...]
    memory: tuple[MemoryRow, ...]
    collectives: tuple[CollectiveRow, ...]

    @property
    def planned_bytes(self) -> int:
        """The plan's peak of tensors."""
        return max(point.total_bytes for point, _ in self.actions)

    @property
    def traced_bytes(self) -> int:
        """The trace's peak of tensors."""
        return max(traced.peak_bytes for _, traced in self.actions)

    @property
    def error(self) -> float:
        """Plan over trace at the peak, less one."""
        return self.planned_bytes / self.traced_bytes - 1

    @property
    def differing(self) -> tuple[CollectiveRow, ...]:
        """Collectives that are not as planned."""
        return tuple(row for row in self.collectives if row.planned != row.traced)


def compare(plan: Plan, trace: Trace) -> Comparison:
    """Lay a rank's trace beside the plan of its job."""
    pp_rank = rank_coords(trace.rank, plan.mesh).pp_rank
    points = memory_over_time(plan, pp_rank)
    assert [point.at for point in points] == [traced.at for traced in trace.actions], "another order than planned"
    return Comparison(
        actions=tuple(zip(points, trace.actions, strict=True)),
        memory=tuple(_memory(max(points, key=lambda point: point.total_bytes), dict(trace.peak))),
        collectives=tuple(_collectives(plan, trace, pp_rank)),
    )


def axes_of(ranks: tuple[int, ...], rank: int, mesh: Mesh, candidates: tuple[str, ...]) -> str | None:
    """The first of some combinations of axes whose group of a rank these are."""
    return next((axes for axes in candidates if group_of(rank, mesh, axes) == ranks), None)


def _memory(point: Point, peak: Mapping[str, int]) -> Iterator[MemoryRow]:
    for name in STATES:
        yield MemoryRow(name, getattr(point, name), peak.get(name, 0))
    rest = point.buffers + point.activations + point.work
    yield MemoryRow("activations, work, buffers", rest, sum(peak.values()) - sum(peak.get(name, 0) for name in STATES))


class _Key(NamedTuple):
    kind: str
    ranks: tuple[int, ...] | int
    size_bytes: int


def _collectives(plan: Plan, trace: Trace, pp_rank: int) -> Iterator[CollectiveRow]:
    """By kind, group and size: that of the pipeline's neighbours is the pair, and of a ring the whole."""
    planned: Counter[_Key] = Counter()
    about: dict[_Key, tuple[str, list[str]]] = {}
    for row in plan.collectives:
        if not row.counts[pp_rank]:
            continue
        pair = row.axes == "pp" and row.group_size == 2
        ranks = 2 if pair else group_of(trace.rank, plan.mesh, row.axes)
        key = _Key(row.kind, ranks, row.size_bytes)
        planned[key] += row.counts[pp_rank]
        about.setdefault(key, (row.axes, []))[1].append(row.why)
    traced: Counter[_Key] = Counter()
    pipeline = set(group_of(trace.rank, plan.mesh, "pp"))
    rings = [key.ranks for key in planned if key.kind == "p2p" and not isinstance(key.ranks, int)]
    for one in trace.collectives:
        if len(one.ranks) == 1:  # Megatron-core calls some where there is nobody to talk to
            continue
        pair = len(one.ranks) == 2 and set(one.ranks) <= pipeline
        ring = next((ring for ring in rings if one.kind == "p2p" and set(one.ranks) <= set(ring)), one.ranks)
        key = _Key(one.kind, 2 if pair else ring, one.size_bytes)
        traced[key] += one.times
        about.setdefault(key, ("pp" if pair else _ranks_text(one.ranks), []))[1].append(one.module)
    for key in dict.fromkeys((*planned, *traced)):
        axes, whys = about[key]
        size = key.ranks if isinstance(key.ranks, int) else len(key.ranks)
        why = ", ".join(list(dict.fromkeys(whys))[:3])
        yield CollectiveRow(key.kind, axes, size, key.size_bytes, planned[key], traced[key], why)


def _ranks_text(ranks: tuple[int, ...]) -> str:
    shown = [*map(str, ranks)] if len(ranks) <= 4 else [*map(str, ranks[:2]), "...", str(ranks[-1])]
    return f"ranks {' '.join(shown)}"
