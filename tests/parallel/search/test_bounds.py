"""No bound lies above the plans that it stands for."""

from random import Random
from typing import Any

import attrs
import pytest

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Batch
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan
from ridgeline.parallel.search import Point, grid_of, job_at, points
from ridgeline.parallel.search.tree import Branch, opener
from tests.parallel.search.small import small_search


@pytest.mark.parametrize("seed", range(100, 160))
def test_every_branch_bounds_the_plans_in_it(seed):
    """Down the tree to a layout, at random: each branch's time and memory are at most those of the plan at its end."""
    job, grid = small_search(seed)
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
