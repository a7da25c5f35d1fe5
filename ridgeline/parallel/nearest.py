"""The legal layouts nearest to one that is not: as few fields changed as can be, and those as little as can be."""

from collections.abc import Iterator
from itertools import combinations, islice, product
from math import log2, prod
from typing import Any

import attrs

from ridgeline.core.errors import Problem, divisors
from ridgeline.core.fields import literal_choices
from ridgeline.core.job import Job
from ridgeline.core.layout import Layout
from ridgeline.parallel.check import job_problems
from ridgeline.parallel.known_wrong import refusals, repaired

NEAR = 5  # values of a degree that are tried, those of the smallest ratio to what was asked
MOST_CHANGES = 3
MOST_TRIED = 2000  # layouts, about half a second


def layout_problems(job: Job) -> tuple[Problem, ...]:
    """The rules that a job breaks by its layout: not those that it would break on a single device as well."""
    alone = _problems_alone(job)
    return tuple(problem for problem in _problems(job) if problem not in alone)


def nearest_layouts(job: Job, *, count: int = 3) -> tuple[Layout, ...]:
    """Legal layouts for a job's model, batch and cluster, the nearest to its own first.

    Args:
        job: Whose layout breaks a rule.
        count: How many, at most. Fewer where no more were found among ``MOST_TRIED``.

    Returns:
        Layouts without ``layout_problems``; none of them changes more fields than a later one.
    """
    alone = _problems_alone(job)
    legal = (
        layout
        for layout in islice(_by_distance(job), MOST_TRIED)
        if all(problem in alone for problem in _problems(attrs.evolve(job, layout=layout)))
    )
    return tuple(islice(legal, count))


def _problems_alone(job: Job) -> tuple[Problem, ...]:
    """What no layout mends; the global batch is left out, since whether it fits dp is the layout's to mend."""
    device = attrs.evolve(job.cluster, nodes=1, devices_per_node=1)
    alone = _problems(attrs.evolve(job, layout=Layout(), cluster=device))
    return tuple(problem for problem in alone if problem.path != "batch.gbs")


def _problems(job: Job) -> tuple[Problem, ...]:
    job, _ = repaired(job)
    return (*job_problems(job), *refusals(job))


def _by_distance(job: Job) -> Iterator[Layout]:
    """Changed layouts whose ranks divide the world: first by how many fields change, then by how far degrees move.

    Noop layers that make the stages of any of them equal are one more change.
    """
    nearer: list[Layout] = [job.layout]
    for changes in range(1, MOST_CHANGES + 1):
        yield from (padded for layout in nearer if (padded := _padded(job, layout)) is not None)
        nearer = list(_changed(job, changes))
        yield from nearer
    yield from (padded for layout in nearer if (padded := _padded(job, layout)) is not None)


def _changed(job: Job, changes: int) -> Iterator[Layout]:
    """Layouts with so many other fields, the degrees that move least first."""
    options = [option for fields in combinations(_choices(job), changes) for option in product(*fields)]
    for option in sorted(options, key=lambda option: sum(distance for distance, _, _ in option)):
        values = {name: value for _, name, value in option}
        ranks = prod(values.get(name, getattr(job.layout, name)) for name in ("tp", "pp", "cp"))
        if job.cluster.world_size % ranks == 0:
            yield attrs.evolve(job.layout, **values)


def _padded(job: Job, layout: Layout) -> Layout | None:
    """The layout with as many noop layers behind the last layer as make all stages equal; None where they are."""
    layers, stages = job.model.num_layers, layout.pp * layout.vpp
    missing = -layers % stages
    if layout.stages is not None or layout.noop_layers or not missing:
        return None
    return attrs.evolve(layout, noop_layers=tuple(range(layers, layers + missing)))


def _choices(job: Job) -> Iterator[list[tuple[float, str, Any]]]:
    """For each field that may change its other values, ``(distance, name, value)``."""
    layout, world = job.layout, divisors(job.cluster.world_size)
    experts = {moe.experts for moe in job.model.moes}
    layers = job.model.num_layers + len(layout.noop_layers)
    degrees = {"tp": world, "pp": world, "cp": world, "vpp": divisors(layers), "slices": (1, 2, 4, 8)}
    degrees |= {"ep": divisors(max(experts)) if experts else (1,), "etp": world}
    if layout.ulysses > 1:
        degrees["ulysses"] = divisors(layout.cp)
    for name, values in degrees.items():
        asked = getattr(layout, name)
        others = [(abs(log2(value / asked)), name, value) for value in values if value != asked]
        yield sorted(others)[:NEAR]
    yield [(1.0, "sp", not layout.sp)]
    algorithms = literal_choices(attrs.fields_dict(Layout)["cp_algorithm"].type)
    yield [(1.0, "cp_algorithm", name) for name in algorithms if name != layout.cp_algorithm]
    for name in ("stages", "noop_layers", "schedule", "microbatch_group_size"):
        default = attrs.fields_dict(Layout)[name].default
        yield [(1.0, name, default)] if getattr(layout, name) != default else []
