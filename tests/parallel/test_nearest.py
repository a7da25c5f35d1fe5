"""The layouts offered instead of an impossible one are legal, and none that is legal is nearer."""

import functools
import itertools
import random

import attrs
import pytest

from ridgeline.core.layout import Layout
from ridgeline.parallel.check import job_problems
from ridgeline.parallel.nearest import layout_problems, nearest_layouts
from ridgeline.parallel.plan import plan
from tests.parallel.examples import DENSE, MOE, changed, dense_model, job_of, moe_model

DEGREES = ("tp", "pp", "cp", "ep", "etp")


def changes(left, right):
    return sum(getattr(left, field.name) != getattr(right, field.name) for field in attrs.fields(Layout))


@functools.cache
def legal_layouts(model):
    """All legal layouts of 8 ranks, chunks and algorithms aside, by trying each."""
    degrees = itertools.product((1, 2, 4, 8), repeat=len(DEGREES))
    layouts = (Layout(**dict(zip(DEGREES, one, strict=True)), sp=sp) for one in degrees for sp in (False, True))
    return [layout for layout in layouts if not job_problems(job_of(model, layout=layout))]


def impossible_layouts(model):
    """Legal layouts with one or two degrees changed to any number."""
    draw = random.Random(7)
    names = DEGREES if model is MOE else DEGREES[:3]
    while True:
        degrees = {name: draw.randint(1, 8) for name in draw.sample(names, draw.randint(1, 2))}
        layout = attrs.evolve(draw.choice(legal_layouts(model)), **degrees)
        if layout_problems(job_of(model, layout=layout)):
            yield layout


@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
def test_none_is_nearer(model):
    """Each has a plan, they come in order of changes, and a search over all layouts finds none with fewer."""
    compared = 0
    for layout in itertools.islice(impossible_layouts(model), 24):
        found = nearest_layouts(job_of(model, layout=layout))
        for one in found:
            plan(job_of(model, layout=one))
        distances = [changes(layout, one) for one in found]
        assert distances == sorted(distances)
        fewest = min(changes(layout, one) for one in legal_layouts(model))
        if distances or fewest <= 2:  # of three changes not all are tried
            assert distances[0] == fewest
            compared += 1
    assert compared >= 18


def test_degrees_move_as_little_as_can_be():
    """Of as many changes, the nearest degree comes first."""
    job = job_of(DENSE, layout__tp=3)
    assert [layout.tp for layout in nearest_layouts(job)[:2]] == [4, 2]


def test_a_fault_that_every_layout_has_is_none_of_the_layout():
    """A sequence too long and a router that learns nothing stay; the layout beside them is mended all the same."""
    job = job_of(moe_model(topk=1), batch__seq_len=512)
    assert job_problems(job)
    assert layout_problems(job) == ()
    wrong = changed(job, layout__ep=3)
    assert [problem.path for problem in layout_problems(wrong)] == ["layout.etp*ep", "layout.ep"]
    assert nearest_layouts(wrong)[0].ep in (2, 4)


def test_what_no_layout_mends_has_no_neighbour():
    """A global batch that is no whole number of microbatches fails on every layout."""
    assert nearest_layouts(job_of(DENSE, batch__mbs=3)) == ()


def test_noop_layers_make_stages_equal():
    """Where only the layers do not divide, as many noop layers as are missing are one change."""
    layout = nearest_layouts(job_of(dense_model(layers=6), layout__pp=4))[0]
    assert (layout.pp, layout.noop_layers) == (4, (6, 7))
