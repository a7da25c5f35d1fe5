"""The process groups that Megatron-core makes are those that the program lists, for as long as a rank is built."""

import pytest

from tests.parity.small import MODELS, job_of

MESHES = {
    "tp2 pp2": {"layout__tp": 2, "layout__sp": True, "layout__pp": 2},
    "tp2 ep2 etp2 dp2": {"layout__tp": 2, "layout__sp": True, "layout__ep": 2, "layout__etp": 2},
    "ep2 dp4": {"layout__ep": 2},
    "dp fastest": {"layout__tp": 2, "layout__sp": True, "layout__order": "dp-tp-cp-ep-pp", "layout__etp": 2},
}


def groups_of(job):
    """This rank's groups as planned, as made, and whether any are left behind."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from torch import distributed

    from ridgeline.kernels.device import open_device
    from ridgeline.models.program import lower
    from ridgeline.parallel.plan import plan
    from ridgeline.parallel.runtime.groups import process_groups

    planned = dict(lower(plan(job), distributed.get_rank()).groups)
    with open_device("cpu").bridge(), process_groups(job.layout, world_size=job.cluster.world_size, seed=1):
        made = ProcessGroupCollection.use_mpu_process_groups()
        ranks = {name: tuple(distributed.get_process_group_ranks(getattr(made, name))) for name in planned}
    return planned, ranks, parallel_state.model_parallel_is_initialized()


def wrong_world(job):
    """What building says when one rank too few was started."""
    from ridgeline.core.errors import LoweringError
    from ridgeline.parallel.runtime.groups import process_groups

    try:
        with process_groups(job.layout, world_size=job.cluster.world_size + 1, seed=1):
            return "built"
    except LoweringError as error:
        return str(error)


@pytest.mark.parametrize("mesh", MESHES)
def test_groups_are_those_of_the_program(ranks, mesh):
    job = job_of(MODELS["moe"], world_size=4, **MESHES[mesh])
    for planned, made, left_behind in ranks.run(groups_of, 4, job):
        assert planned == made
        assert not left_behind


def test_another_number_of_ranks(ranks):
    (said,) = ranks.run(wrong_world, 1, job_of(MODELS["moe"]))
    assert said == "world_size=1: the plan is for 2 ranks; start that many or change the cluster"
