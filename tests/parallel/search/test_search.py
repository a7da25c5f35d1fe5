"""A search gives what planning every layout gives."""

import attrs
import pytest

from ridgeline.parallel.search import points, search
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
    for hbm_bytes in (sizes[len(sizes) * seed // 50], sizes[0] - 1):
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
        if not fitting and every:
            assert result.shortage is not None
            assert result.shortage.over_bytes == sizes[0] - hbm_bytes
