"""Small random jobs to search, each with a small random grid, and the answer of planning all of it."""

from random import Random

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import Plan, plan
from ridgeline.parallel.search import Grid, Point, grid_of, job_at, points
from tests.parallel.examples import dense_model, job_of, moe_model

RECOMPUTES = (
    None,
    SelectiveRecompute(modules=("core_attn",)),
    SelectiveRecompute(modules=("layernorm", "mlp")),
    FullRecompute(),
    FullRecompute(method="block", num_layers=1),
    FullRecompute(method="block", num_layers=2),
)


MOST = 32
"""About how many layouts a grid holds at most, so that all can be planned."""

STORES = (
    *({},) * 4,
    {"swap_attention": (False, True)},
    {"swap_optimizer": (False, True)},
    {"masters": ("fp32", "low_bits")},
    {"moe_dispatcher": ("alltoall", "allgather"), "moe_overlap": ((), ("weight_gradients",))},
)


def small_search(seed: int) -> tuple[Job, Grid]:
    """A job and a grid of some dozens of layouts, always the same for a seed."""
    random = Random(seed)
    layers = random.choice((4, 6, 7, 8))
    tied = {"tied_embeddings": random.random() < 0.3}
    model = dense_model(layers=layers, **tied) if random.random() < 0.5 else moe_model(layers=layers, **tied)
    if random.random() < 0.3:
        model = moe_model(layers=layers, dense_layers=2, **tied)
    cluster = cluster_preset("atlas-800t-a2", random.choice((1, 2)), devices_per_node=random.choice((4, 8)))
    job = attrs.evolve(
        job_of(model, batch__gbs=random.choice((16, 24, 64)), comm__overlap_grad_reduce=random.random() < 0.3),
        cluster=cluster,
    )
    whole = grid_of(job)
    few = {axis: _few(random, getattr(whole, axis)) for axis in ("tp", "cp", "ep", "mbs", "pp")}
    grid = grid_of(
        job,
        **few,
        etp=(1,),
        cp_algorithm=random.sample(whole.cp_algorithm, 1),
        sp=random.sample(whole.sp, 1),
        recompute=random.sample(RECOMPUTES, 2),
        distributed_optimizer=random.sample((True, False), random.choice((1, 1, 2))),
        **random.choice(STORES),
        vpp=(1, 2),
        schedule=("1f1b", *random.sample(whole.schedule[1:], 1)),
        stages=uneven(random, layers),
    )
    for axis in ("recompute", "mbs", "tp", "swap_attention", "moe_overlap", "ep"):
        if len(list(points(job, grid))) > MOST:
            grid = attrs.evolve(grid, **{axis: getattr(grid, axis)[:1]})
    return job, grid


def _few(random: Random, values: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest, with which some layout has a plan, and another."""
    return tuple(dict.fromkeys((values[0], random.choice(values))))


def uneven(random: Random, layers: int) -> tuple[tuple[int, ...] | None, ...]:
    """An even division, and any lists whatever of 2 and of 4 stages."""
    lists: list[tuple[int, ...] | None] = [None]
    for stages in (2, 4):
        cuts = sorted(random.sample(range(1, layers), stages - 1))
        lists.append(tuple(b - a for a, b in zip((0, *cuts), (*cuts, layers), strict=True)))
    return tuple(dict.fromkeys(lists))


def plans(job: Job, grid: Grid) -> dict[Point, Plan]:
    """The plan of every point that has one."""
    found = {}
    for point in points(job, grid):
        try:
            found[point] = plan(job_at(job, point))
        except PlanError:
            continue
    return found
