"""A rank traced in a process of the virtual NPU, which ends with it."""

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual.processes import virtual_processes
from ridgeline.models.program import RankProgram
from ridgeline.parallel.traced import Trace

PATIENCE_SECONDS = 4 * 3600.0
"""For a step of very many microbatches."""

TRACE = "ridgeline.models.runtime.tracing.trace:trace_or_fault"


def traced(program: RankProgram) -> Trace:
    """Trace one step of a rank.

    Raises:
        LoweringError: torch_npu or a C compiler is missing, or the program reads a number that no trace has.
    """
    with virtual_processes() as (process,):
        trace = process.call(TRACE, program, timeout=PATIENCE_SECONDS)
    if isinstance(trace, str):
        raise LoweringError(trace)
    return trace
