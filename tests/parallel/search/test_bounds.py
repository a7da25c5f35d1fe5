"""No bound lies above the plans that it stands for."""

from itertools import takewhile
from random import Random
from typing import Any, get_args

import attrs
import pytest

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Batch
from ridgeline.core.layout import Layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan
from ridgeline.parallel.schedules.known import Pipeline, plan_schedule
from ridgeline.parallel.search import Point, grid_of, job_at, points
from ridgeline.parallel.search.bounds import forwards_first
from ridgeline.parallel.search.grid import INTERLEAVED
from ridgeline.parallel.search.tree import Branch, opener
from tests.parallel.search.small import small_search


@pytest.mark.parametrize("seed", range(100, 160))
def test_every_branch_bounds_the_plans_in_it(seed):
    """Down the tree to a layout, at random: each branch's time and memory are at most those of the plan at its end."""
    check_bounds(seed, *small_search(seed))


@pytest.mark.parametrize("seed", range(200, 230))
def test_bounds_hold_where_actions_overlap_or_recompute_ahead(seed):
    """So they do where pairs hide what experts exchange, and where activations are recomputed before their backward."""
    job, grid = small_search(seed)
    ahead = attrs.evolve(job, memory=attrs.evolve(job.memory, recompute_when=("advance", "bubble")[seed % 2]))
    check_bounds(seed, ahead, grid)
    paired = attrs.evolve(job, comm=attrs.evolve(job.comm, moe_fb_overlap=True))
    check_bounds(seed, paired, attrs.evolve(grid, schedule=("1f1b", "interleaved_1f1b", "dualpipe_v")))


def check_bounds(seed, job, grid):
    """Walk down the tree some times, and compare with the plan at the end."""
    opened, random = opener(job, grid), Random(seed)
    for _ in range(4):
        path: list[Branch] = []
        at: tuple[Any, ...] = ()
        while len(at) < 3:
            branch = random.choice(list(opened(at)))
            path.append(branch)
            at = branch.at
        try:
            planned = plan(job_at(job, Point(*at)))
        except PlanError:
            continue
        for branch in path:
            assert branch.bound_us <= planned.time.step_us
            assert branch.floor_bytes <= planned.peak.total_bytes


def test_the_bound_of_1f1b_is_close():
    """Nine tenths of the step at the least, where stages are equal and work outweighs transfers."""
    job = attrs.evolve(preset("llama2-7b"), batch=Batch(seq_len=4096, gbs=64))
    fixed = {"tp": (1,), "mbs": (1,), "vpp": (1,), "schedule": ("1f1b",), "stages": (None,), "pp": (4,)}
    opened = opener(job, grid_of(job, cp=(1,), **fixed))
    leaves = [
        leaf for shape in opened(()) for scheme in opened(shape.at) for leaf in opened(scheme.at) if leaf.bound_us > 0
    ]
    assert len(leaves) > 5
    for leaf in leaves:
        assert 0.9 * plan(job_at(job, Point(*leaf.at))).time.step_us < leaf.bound_us


def test_branches_hold_all_points():
    """The points of a grid are those of its branches, each once."""
    job, grid = small_search(3)
    opened = opener(job, grid)
    leaves = [leaf.at for shape in opened(()) for scheme in opened(shape.at) for leaf in opened(scheme.at)]
    assert sorted(leaves, key=repr) == sorted(points(job, grid), key=repr)
    assert sum(branch.points for branch in opened(())) == len(leaves)


@pytest.mark.parametrize("schedule", get_args(get_args(Layout.__annotations__["schedule"])[0]))
@pytest.mark.parametrize(("pp", "num_microbatches"), [(2, 4), (4, 8), (4, 12), (8, 16)])
def test_forwards_before_the_first_backward_are_those_of_the_schedule(schedule, pp, num_microbatches):
    """Told without the schedule, never more than it runs; and for the usual ones exactly as many."""
    vpp = 2 if schedule in INTERLEAVED else 1
    chunks = Layout(vpp=vpp, schedule=schedule).chunks
    slices = 2 if schedule == "seq1f1b" else 1
    made = plan_schedule(schedule, Pipeline(pp=pp, vpp=chunks, num_microbatches=num_microbatches, slices=slices))
    for rank, actions in enumerate(made.ranks):
        before = list(takewhile(lambda action: action.kind == "F", actions))
        for chunk, stage in enumerate(sorted({action.stage for action in actions})):
            told = forwards_first(
                schedule, pp=pp, rank=rank, chunks=chunks, chunk=chunk, num_microbatches=num_microbatches
            )
            run = sum(action.stage == stage for action in before)
            assert told == run if schedule in ("1f1b", "gpipe", "interleaved_1f1b", "zb_2p") else told <= run
