"""``ridgeline trace``: one step of one rank's real program, in tensors without numbers, beside the plan."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ridgeline.apps.edges import edge
from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give, open_console, write_json
from ridgeline.apps.reading import read_job
from ridgeline.core.errors import Problem, SpecError


def trace(
    job: str,
    /,
    *options: Overrides,
    rank: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
    events: Path | None = None,
) -> None:
    """Run one step of one rank on the virtual NPU, whatever the world's size, and compare it with the plan.

    The rank's own program runs, from Megatron-core's modules to torch_npu's operators, in tensors that have shapes but
    no numbers: what it holds, computes and sends is seen, not modelled. Needs torch_npu and a C compiler, no Ascend.

    Args:
        job: A job file, a preset or a model folder.
        options: Fields of the job, as --layout.tp 8.
        rank: Which one, 0 .. world size - 1.
        json: Print the numbers as JSON instead.
        events: Also write memory over time and its modules to this file, as a Chrome trace.
    """
    from ridgeline.apps.planning import plan_or_advise
    from ridgeline.models.program import lower
    from ridgeline.parallel.traced import compare

    planned = plan_or_advise(read_job(job, options).job)
    _check(rank, planned.mesh.world_size, planned.job.cluster.chip.device)
    trace = edge("ridgeline.apps.runtime.tracing:traced")(lower(planned, rank))
    comparison = compare(planned, trace)
    if events is not None:
        from ridgeline.apps.reports.traced_events import events_text

        give(events_text(trace), path=events, option="--events")
    if json:
        from ridgeline.apps.reports.trace import trace_data

        write_json(trace_data(planned, trace, comparison))
        return
    from ridgeline.apps.reports.trace import print_trace

    print_trace(planned, trace, comparison, open_console())


def _check(rank: int, world_size: int, device: str) -> None:
    problems = []
    if not 0 <= rank < world_size:
        problems.append(Problem("--rank", rank, f"must be 0 .. {world_size - 1}, the ranks of the job"))
    if device != "npu":
        way_out = "name a cluster of NPUs, as --cluster atlas-800t-a2"
        problems.append(Problem("cluster.chip.device", device, "is not traced: the virtual NPU is an npu", way_out))
    if problems:
        raise SpecError(problems)
