"""The plan of a job: what all ranks will do, decided before anything starts.

    plan(job) -> Plan    pure, in milliseconds, without torch

A known fault of the layout is repaired first and said as a warning; then every rule between specs is checked at once.
"""

import attrs

from ridgeline.core.errors import PlanError
from ridgeline.core.job import Job
from ridgeline.parallel.check import job_problems, mesh_of, no_effect, stages_of
from ridgeline.parallel.known_wrong import refusals, repaired
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.known import plan_schedule
from ridgeline.parallel.shards import ParamRow, plan_shards
from ridgeline.parallel.stages import StageMap


@attrs.frozen(kw_only=True)
class Plan:
    """What all ranks of a job will do.

    Attributes:
        job: As it will run, after repairs.
        mesh: Which rank sits where.
        stages: Which layers each pipeline stage owns.
        schedule: What each pipeline rank does, in order.
        shards: How every parameter lies on the mesh.
        warnings: What the user should know, a sentence each; every repair is here.
        assumptions: What the numbers rest on, a sentence each.
    """

    job: Job
    mesh: Mesh
    stages: StageMap
    schedule: Schedule
    shards: tuple[ParamRow, ...]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]


def plan(job: Job) -> Plan:
    """Plan a job.

    Raises:
        PlanError: No plan exists; every rule broken is named, with its way out.
    """
    job, repairs = repaired(job)
    problems = (*job_problems(job), *refusals(job))
    if problems:
        raise PlanError(problems)
    return Plan(
        job=job,
        mesh=mesh_of(job),
        stages=stages_of(job),
        schedule=schedule_of(job),
        shards=plan_shards(job.model, job.layout),
        warnings=(*repairs, *no_effect(job)),
        assumptions=(),
    )


def schedule_of(job: Job) -> Schedule:
    """The pipeline schedule of one step of a job."""
    layout = job.layout
    return plan_schedule(
        layout.schedule_name,
        pp=layout.pp,
        vpp=layout.vpp,
        num_microbatches=job.num_microbatches,
        microbatch_group_size=layout.microbatch_group_size if layout.vpp > 1 else None,
    )
