"""Fit a chip's efficiencies to measured steps: least squares on logarithms, robust, and held near where they start.

A share between 0 and 1 is fitted as its logit, a positive number as its logarithm, so that no step leaves its range.
The sum that is made small has for each run Huber's loss of ``log(planned / measured)``, and for each constant the
square of how far it left its start: constants that the runs say nothing of stay where their sources put them.

Source:
    Levenberg-Marquardt with reweighting: Nocedal and Wright, Numerical Optimization (2006), sections 10.3 and 10.2;
    Huber's loss: Huber, Ann. Math. Statist. 35 (1964).
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import exp, log
from typing import Any, NamedTuple

import attrs

from ridgeline.core.cluster import Cluster, Efficiency
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.parallel.collectives import Collective, plan_collectives
from ridgeline.parallel.held import plan_held
from ridgeline.parallel.of_job import mesh_of, stages_of
from ridgeline.parallel.plan import schedule_of
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.shards import plan_shards
from ridgeline.parallel.simulate import simulate
from ridgeline.parallel.time import plan_stage_times, plan_time
from ridgeline.parallel.work import StageWork, stage_work

LINKS = ("intra", "inter")
CONSTANTS = (*(field.name for field in attrs.fields(Efficiency)), *LINKS)
HUBER = 0.10  # runs further off than this count by their distance, not its square
LEASH = 0.5  # a constant this far from its start, in logits or logarithms, weighs as much as a run off by HUBER
ITERATIONS = 12
REPEATS = 4  # warmups after which a pipeline is taken to repeat itself
STEP = 1e-3  # of a numerical derivative


@frozen(kw_only=True)
class MeasuredRun:
    """A job and how long its step took.

    Attributes:
        name: What to call it.
        family: Runs of one family are held out together.
        job: What ran.
        step_us: How long a step took.
    """

    name: str
    family: str
    job: Job
    step_us: float


class Fit(NamedTuple):
    """Constants, and what they leave.

    Attributes:
        values: Of each constant that was fitted.
        errors: For each run ``planned / measured - 1`` of the step's time.
    """

    values: dict[str, float]
    errors: tuple[float, ...]


Predictor = Callable[[tuple[float, ...]], tuple[float, ...]]


def fit(runs: Sequence[MeasuredRun], *, constants: Sequence[str] = CONSTANTS) -> Fit:
    """The constants that suit runs best, and the errors they leave; from the clusters of the jobs themselves.

    Args:
        runs: At least one.
        constants: Which to fit: fields of ``Efficiency``, and ``intra`` and ``inter`` of the links.
    """
    start, predict = _problem(runs, constants)
    found = _least_squares(start, start, predict, range(len(runs)))
    return Fit(_values(constants, found), tuple(exp(residual) - 1 for residual in predict(found)))


def held_out(runs: Sequence[MeasuredRun], *, constants: Sequence[str] = CONSTANTS) -> tuple[float, ...]:
    """For each run its error under constants fitted to the runs of all other families."""
    _, predict = _problem(runs, constants)
    residuals = {
        family: predict(tuple(_to_line(name, value) for name, value in values.items()))
        for family, values in held_out_values(runs, constants=constants).items()
    }
    return tuple(exp(residuals[run.family][index]) - 1 for index, run in enumerate(runs))


def held_out_values(
    runs: Sequence[MeasuredRun], *, constants: Sequence[str] = CONSTANTS
) -> dict[str, dict[str, float]]:
    """For each family the constants fitted to the runs of all others."""
    start, predict = _problem(runs, constants)
    near = _least_squares(start, start, predict, range(len(runs)))  # where every search begins, not what it is held to
    found = {}
    for family in dict.fromkeys(run.family for run in runs):
        others = [index for index, run in enumerate(runs) if run.family != family]
        found[family] = _values(constants, _least_squares(near, start, predict, others))
    return found


def with_constants(cluster: Cluster, values: dict[str, float]) -> Cluster:
    """A cluster whose chip and links have these constants."""
    efficiency = {name: value for name, value in values.items() if name not in LINKS}
    links = {
        name: attrs.evolve(getattr(cluster, name), efficiency=value) for name, value in values.items() if name in LINKS
    }
    chip = attrs.evolve(cluster.chip, efficiency=attrs.evolve(cluster.chip.efficiency, **efficiency))
    return attrs.evolve(cluster, chip=chip, **links)


def constants_of(cluster: Cluster) -> dict[str, float]:
    """Every constant that can be fitted, as a cluster has it."""
    links = {name: getattr(cluster, name).efficiency for name in LINKS}
    return attrs.asdict(cluster.chip.efficiency) | links


class _Prepared(NamedTuple):
    """What of a job's plan does not depend on the constants."""

    job: Job
    parts: dict[str, Any]
    work: tuple[StageWork, ...]
    collectives: tuple[Collective, ...]
    schedule: Schedule

    def step_us(self, values: dict[str, float]) -> float:
        """The time of a step under some constants; its schedule stays what it was."""
        job = attrs.evolve(self.job, cluster=with_constants(self.job.cluster, values))
        times = plan_stage_times(job, **self.parts, work=self.work)
        timeline = simulate(self.schedule, stage_us=times.stage_us, p2p_us=times.p2p_us)
        return plan_time(job, **self.parts, times=times, timeline=timeline, collectives=self.collectives).step_us


def _prepared(job: Job) -> _Prepared:
    mesh, stages = mesh_of(job), stages_of(job)
    held = plan_held(job, mesh=mesh, stages=stages, shards=plan_shards(job.model, job.layout, job.adapter))
    parts = {"mesh": mesh, "stages": stages, "held": held}
    work = stage_work(job, stages)
    schedule = schedule_of(job, plan_stage_times(job, **parts, work=work))
    return _Prepared(job, parts, work, plan_collectives(job, **parts, work=work, schedule=schedule), schedule)


class _Steps(NamedTuple):
    """A job's steps of few microbatches; longer ones go on as these do, since a long pipeline repeats itself."""

    short: _Prepared
    longer: _Prepared
    more: float

    def step_us(self, values: dict[str, float]) -> float:
        """The time of the whole step under some constants."""
        longer = self.longer.step_us(values)
        return longer + self.more * (longer - self.short.step_us(values)) if self.more else longer


def _steps(job: Job) -> _Steps:
    few = REPEATS * (job.layout.microbatch_group_size or job.layout.pp) if job.layout.pp > 1 else 1
    if job.num_microbatches <= 2 * few or job.num_microbatches % few:
        whole = _prepared(job)
        return _Steps(whole, whole, 0.0)
    short, longer = (
        _prepared(attrs.evolve(job, batch=attrs.evolve(job.batch, gbs=count * job.batch.mbs * job.dp)))
        for count in (few, 2 * few)
    )
    return _Steps(short, longer, (job.num_microbatches - 2 * few) / few)


def _problem(runs: Sequence[MeasuredRun], constants: Sequence[str]) -> tuple[tuple[float, ...], Predictor]:
    """Where the search starts, and the residuals of all runs at a point."""
    steps = [_steps(run.job) for run in runs]
    begin = constants_of(runs[0].job.cluster)

    @cache
    def residuals(point: tuple[float, ...]) -> tuple[float, ...]:
        values = _values(constants, point)
        return tuple(log(one.step_us(values) / run.step_us) for one, run in zip(steps, runs, strict=True))

    return tuple(_to_line(name, begin[name]) for name in constants), residuals


def _values(constants: Sequence[str], point: Sequence[float]) -> dict[str, float]:
    return {name: _from_line(name, value) for name, value in zip(constants, point, strict=True)}


def _is_share(name: str) -> bool:
    return name in LINKS or "maximum" in attrs.fields_dict(Efficiency)[name].metadata


def _to_line(name: str, value: float) -> float:
    if _is_share(name):
        value = min(value, 0.995)
        return log(value / (1 - value))
    return log(max(value, 1e-3))


def _from_line(name: str, value: float) -> float:
    return 1 / (1 + exp(-value)) if _is_share(name) else exp(value)


def _least_squares(
    point: tuple[float, ...], start: tuple[float, ...], predict: Predictor, used: Sequence[int]
) -> tuple[float, ...]:
    """From a point to where the used residuals and the way from the start are least."""
    damping = 1e-2
    best = _loss(point, start, predict, used)
    for _ in range(ITERATIONS):
        matrix, vector = _normal_equations(point, start, predict, used)
        for _ in range(6):
            damped = [
                [entry * (1 + damping * (row == column)) for column, entry in enumerate(entries)]
                for row, entries in enumerate(matrix)
            ]
            moved = tuple(x + dx for x, dx in zip(point, _solve(damped, vector), strict=True))
            loss = _loss(moved, start, predict, used)
            if loss < best:
                break
            damping *= 5
        else:
            return point
        gained, point, best, damping = best - loss, moved, loss, damping / 5
        if gained < 1e-4 * best:
            break
    return point


def _loss(point: Sequence[float], start: Sequence[float], predict: Predictor, used: Sequence[int]) -> float:
    residuals = predict(tuple(point))
    leash = sum(((x - x0) / LEASH * HUBER) ** 2 for x, x0 in zip(point, start, strict=True))
    return leash + sum(_huber(residuals[index]) for index in used)


def _huber(residual: float) -> float:
    far = abs(residual)
    return residual * residual if far <= HUBER else 2 * HUBER * far - HUBER * HUBER


def _normal_equations(
    point: tuple[float, ...], start: tuple[float, ...], predict: Predictor, used: Sequence[int]
) -> tuple[list[list[float]], list[float]]:
    """Of the reweighted linear problem at a point."""
    size, here = len(point), predict(point)
    slopes = []
    for index in range(size):
        there = predict((*point[:index], point[index] + STEP, *point[index + 1 :]))
        slopes.append([(after - before) / STEP for after, before in zip(there, here, strict=True)])
    weights = [min(1.0, HUBER / abs(residual)) if residual else 1.0 for residual in here]
    leash = (HUBER / LEASH) ** 2
    matrix = [
        [
            sum(weights[i] * slopes[row][i] * slopes[column][i] for i in used) + leash * (row == column)
            for column in range(size)
        ]
        for row in range(size)
    ]
    vector = [
        -sum(weights[i] * slopes[row][i] * here[i] for i in used) - leash * (point[row] - start[row])
        for row in range(size)
    ]
    return matrix, vector


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """The solution of a symmetric positive system, by Gauss's elimination."""
    rows = [[*entries, value] for entries, value in zip(matrix, vector, strict=True)]
    size = len(rows)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            share = rows[row][pivot] / rows[pivot][pivot]
            rows[row] = [a - share * b for a, b in zip(rows[row], rows[pivot], strict=True)]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (rows[row][size] - known) / rows[row][row]
    return solution
