"""How two specs differ."""

import attrs
from hypothesis import given, settings

from ridgeline.core.diff import Change, diff
from ridgeline.core.job import CosineLr, FullRecompute, Job, Memory, Optimizer, SelectiveRecompute, WsdLr
from tests.strategies import jobs


@given(jobs(), jobs())
@settings(max_examples=20, deadline=None)
def test_there_is_a_difference_iff_specs_differ(left, right):
    """And read from the other side it is the same, mirrored."""
    half = attrs.evolve(left, batch=right.batch, memory=right.memory)
    for other in (left, half, right):
        assert (diff(left, other) == ()) == (left == other)
        mirrored = {Change(change.path, change.right, change.left) for change in map(_hashable, diff(other, left))}
        assert set(map(_hashable, diff(left, other))) == mirrored


def _hashable(change):
    return Change(change.path, str(change.left), str(change.right))


def test_a_member_of_a_union_is_told_by_its_kind():
    """Another kind shows as the kind and as the fields it does not share."""
    left = Optimizer(lr_schedule=CosineLr(decay_steps=5))
    right = Optimizer(lr_schedule=WsdLr(anneal_steps=3))
    assert [str(change) for change in diff(left, right)] == [
        "lr_schedule.kind: cosine -> wsd",
        "lr_schedule.decay_steps: 5 -> -",
        "lr_schedule.anneal_steps: - -> 3",
        "lr_schedule.style: - -> exponential",
    ]


def test_an_absent_spec_shows_all_of_the_present_one():
    """Nothing is hidden behind a table that appears."""
    assert [str(change) for change in diff(Memory(), Memory(recompute=FullRecompute()))] == [
        "recompute.kind: - -> full",
        "recompute.method: - -> uniform",
        "recompute.num_layers: - -> 1",
        "recompute.per: - -> stage",
        "recompute.modules: - -> []",
    ]
    modules = SelectiveRecompute(modules=("mlp", "core_attn"))
    assert [str(change) for change in diff(SelectiveRecompute(), modules)] == [
        "modules: ['core_attn'] -> ['mlp', 'core_attn']"
    ]


@given(jobs())
@settings(max_examples=10, deadline=None)
def test_paths_are_those_of_errors_and_options(job):
    """A change's path is the dotted name that a file, an option and an error use."""
    tp = 1 if job.layout.tp > 1 else 2
    other = attrs.evolve(job, layout=attrs.evolve(job.layout, tp=tp))
    assert diff(job, other) == (Change("layout.tp", job.layout.tp, tp),)
    assert isinstance(other, Job)
