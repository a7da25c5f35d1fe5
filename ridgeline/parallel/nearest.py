"""The legal layouts nearest to one that is not: as few fields changed as can be, and those as little as can be."""

from collections.abc import Iterator
from itertools import combinations, islice, product
from math import log2
from typing import Any

import attrs

from ridgeline.core.errors import Problem, divisors
from ridgeline.core.fields import literal_choices
from ridgeline.core.job import Job
from ridgeline.core.layout import Layout
from ridgeline.core.model import Moe
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
    world, alone = job.cluster.world_size, _problems_alone(job)
    legal = (
        layout
        for layout in islice(_by_distance(job), MOST_TRIED)
        if world % (layout.tp * layout.pp * layout.cp) == 0
        and all(problem in alone for problem in _problems(attrs.evolve(job, layout=layout)))
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
    """Changed layouts: first by how many fields change, then by how far their degrees move."""
    choices = tuple(_choices(job))
    for changes in range(1, MOST_CHANGES + 1):
        options = [option for fields in combinations(choices, changes) for option in product(*fields)]
        for option in sorted(options, key=lambda option: sum(distance for distance, _, _ in option)):
            yield attrs.evolve(job.layout, **{name: value for _, name, value in option})


def _choices(job: Job) -> Iterator[list[tuple[float, str, Any]]]:
    """For each field that may change its other values, ``(distance, name, value)``."""
    layout, world = job.layout, divisors(job.cluster.world_size)
    experts = {run.block.feed_forward.experts for run in job.model.blocks if isinstance(run.block.feed_forward, Moe)}
    layers = job.model.num_layers + len(layout.noop_layers)
    degrees = {"tp": world, "pp": world, "cp": world, "vpp": divisors(layers), "slices": (1, 2, 4, 8)}
    degrees |= {"ep": divisors(max(experts)) if experts else (1,), "etp": world}
    for name, values in degrees.items():
        asked = getattr(layout, name)
        others = [(abs(log2(value / asked)), name, value) for value in values if value != asked]
        yield sorted(others)[:NEAR]
    yield [(1.0, "sp", not layout.sp)]
    algorithms = literal_choices(attrs.fields_dict(Layout)["cp_algorithm"].type)
    yield [(1.0, "cp_algorithm", name) for name in algorithms if name != layout.cp_algorithm]
    yield [(0.5, "noop_layers", padding) for padding in _paddings(job) if padding != layout.noop_layers]
    for name in ("stages", "schedule", "microbatch_group_size"):
        default = attrs.fields_dict(Layout)[name].default
        yield [(1.0, name, default)] if getattr(layout, name) != default else []


def _paddings(job: Job) -> Iterator[tuple[int, ...]]:
    """No noop layers, and as many behind the last layer as make all stages equal."""
    layers, stages = job.model.num_layers, job.layout.pp * job.layout.vpp
    yield ()
    yield tuple(range(layers, layers + -layers % stages))
