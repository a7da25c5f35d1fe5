"""A search gives what planning every layout gives."""

from itertools import chain
from operator import attrgetter

import attrs
import pytest

from ridgeline.core.errors import PlanError
from ridgeline.core.job import FullRecompute
from ridgeline.core.transforms import on_nodes
from ridgeline.models.jobs import preset
from ridgeline.parallel.search import grid_of, points, search
from ridgeline.parallel.search.grid import PATHS, job_at
from tests.parallel.examples import dense_model, job_of, moe_model
from tests.parallel.search.small import plans, small_search


def with_hbm(job, hbm_bytes):
    chip = attrs.evolve(job.cluster.chip, hbm_bytes=hbm_bytes)
    return attrs.evolve(job, cluster=attrs.evolve(job.cluster, chip=chip))


@pytest.mark.parametrize("seed", range(50))
def test_a_search_equals_brute_force(seed):
    """The best, the front and the ranking, on devices large enough for a part of the layouts; what lacks on others."""
    job, grid = small_search(seed)
    every = plans(job, grid)
    sizes = sorted(one.peak.total_bytes for one in every.values()) or [2]
    for hbm_bytes in (sizes[len(sizes) * seed // 50], sizes[0] - 1)[: 1 + (seed % 4 == 0)]:
        fitting = [one for one in every.values() if one.peak.total_bytes <= hbm_bytes]
        result = search(with_hbm(job, hbm_bytes), grid, within=float("inf"), top=1000, planned_only=True)
        assert result.counts.points == len(list(points(job, grid)))
        covered = attrs.asdict(result.counts)
        assert sum(covered[name] for name in ("planned", "slower", "larger", "refused")) == result.counts.points
        front = []
        for one in sorted(fitting, key=lambda one: (one.time.step_us, one.peak.total_bytes)):
            if not front or one.peak.total_bytes < front[-1][1]:
                front.append((one.time.step_us, one.peak.total_bytes))
        assert [(one.step_us, one.total_bytes) for one in result.front] == front
        fastest = {}
        for one in fitting:
            mesh = (one.mesh.tp, one.mesh.cp, one.mesh.ep, one.mesh.etp, one.mesh.pp)
            fastest[mesh] = min(fastest.get(mesh, float("inf")), one.time.step_us)
        assert [one.step_us for one in result.ranked] == sorted(fastest.values())
        quick = search(with_hbm(job, hbm_bytes), grid, within=1.0, top=1, planned_only=True)
        assert [one.step_us for one in quick.ranked] == [step_us for step_us, _ in front[:1]]
        if not fitting and every:
            assert result.shortage is not None
            assert result.shortage.over_bytes == sizes[0] - hbm_bytes


@pytest.mark.parametrize("seed", range(12))
def test_a_point_is_in_its_job(seed):
    """The job at a point has the point's value of every axis, in the field that the axis is named for."""
    job, grid = small_search(seed)
    for point in points(job, grid):
        there = job_at(job, point)
        for axis, value in chain.from_iterable(part._asdict().items() for part in point):
            assert attrgetter(PATHS[axis])(there) == value, axis


def test_nodes_that_would_do_are_told():
    """On so many nodes a layout fits, on half as many none does."""
    job = preset("llama2-70b", batch={"gbs": 64, "seq_len": 4096})
    few = {"mbs": (1,), "vpp": (1,), "cp": (1,), "schedule": ("1f1b",), "recompute": (FullRecompute(),)}
    result = search(job, grid_of(job, **few))
    assert result.best is None
    assert result.shortage is not None
    nodes = result.shortage.nodes
    assert nodes is not None
    for count, fits in ((nodes, True), (nodes // 2, False)):
        there = on_nodes(count)(job)
        assert (search(there, grid_of(there, **few), within=1.0, top=1).best is not None) == fits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp": (3,)}, "layout.tp=3: must divide heads=32; use 1, 2, 4, 8, 16 or 32"),
        ({"tp": (8,), "pp": (8,)}, "no tp\\*cp\\*pp of it divides world_size=8"),
    ],
)
def test_a_grid_without_layouts_is_refused(given, message):
    """What keeps its values out is named."""
    job = preset("llama2-7b", batch={"gbs": 64})
    with pytest.raises(PlanError, match=message):
        search(job, grid_of(job, **given))


def test_a_grid_names_what_it_would_search_if_it_were_given():
    job = job_of(dense_model(layers=4), memory__swap_optimizer=True)
    left = {one.axis: one.values for one in grid_of(job, swap_attention=(True, False)).left_out}
    assert left == {"swap_optimizer": (False,), "masters": ("low_bits",)}
    experts = {one.axis: one.values for one in grid_of(job_of(moe_model(moe={"shared_ffn": 32}))).left_out}
    assert experts["moe_dispatcher"] == ("alltoall_seq", "allgather")
    assert experts["moe_overlap"] == (("shared_experts",),)
