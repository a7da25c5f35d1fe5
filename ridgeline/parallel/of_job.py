"""The mesh and the stages of a job."""

from ridgeline.core.job import Job
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.stages import StageMap, plan_stages


def mesh_of(job: Job) -> Mesh:
    """The mesh of a job's layout on its cluster.

    Raises:
        SpecError: No mesh has these degrees in this order.
    """
    layout = job.layout
    degrees = {name: getattr(layout, name) for name in ("tp", "cp", "ep", "etp", "pp", "ulysses")}
    return Mesh(**degrees, dp=job.dp, order=layout.order)


def stages_of(job: Job) -> StageMap:
    """Which layers each stage of a job owns.

    Raises:
        PlanError: The layers cannot be divided so.
    """
    layout = job.layout
    return plan_stages(
        job.model.num_layers,
        pp=layout.pp,
        vpp=layout.chunks,
        stages=layout.stages,
        noop_layers=layout.noop_layers,
        mtp=job.model.mtp,
        placement=layout.placement,
    )
