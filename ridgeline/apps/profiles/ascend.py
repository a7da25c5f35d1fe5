"""The tables that torch_npu.profiler writes, read as a summary."""

import csv
from pathlib import Path

from ridgeline.apps.profiles.summary import RankProfile, StepTime, op_times
from ridgeline.core.errors import Problem, SpecError

RESULTS = "ASCEND_PROFILER_OUTPUT"
STEPS, KERNELS = "step_trace_time.csv", "kernel_details.csv"
COMPUTE, EXPOSED, COMMUNICATION, FREE = "Computing", "Communication(Not Overlapped)", "Communication", "Free"
"""Columns of the table of steps, in microseconds, that together with the next two are all that is read."""
NAME, TYPE, DURATION = "Name", "Type", "Duration(us)"
UNKNOWN = "N/A"
"""The type of every kernel below ``level1``, where CANN keeps no more than names."""


def read(folder: Path, *, rank: int) -> RankProfile:
    """The summary of a rank's tables.

    Raises:
        SpecError: A table is missing, or lacks a column.
    """
    steps = tuple(
        _step_time(index, row) for index, row in enumerate(_rows(folder / STEPS, COMPUTE, EXPOSED, COMMUNICATION, FREE))
    )
    if not steps:
        raise SpecError(Problem("profile", str(folder / STEPS), "holds no step", "profile a step that the run makes"))
    kernels = _rows(folder / KERNELS, NAME, TYPE, DURATION)
    ops = op_times((row[NAME] if row[TYPE] == UNKNOWN else row[TYPE], float(row[DURATION])) for row in kernels)
    return RankProfile(rank=rank, steps=steps, ops=ops)


def _step_time(index: int, row: dict[str, str]) -> StepTime:
    compute, exposed, free = float(row[COMPUTE]), float(row[EXPOSED]), float(row[FREE])
    return StepTime(
        step=int(float(row.get("Step") or index)),
        total_us=compute + exposed + free,
        compute_us=compute,
        communication_us=float(row[COMMUNICATION]),
        exposed_us=exposed,
        idle_us=free,
    )


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except OSError as error:
        way_out = "analyse the raw data first: torch_npu.profiler.profiler.analyse"
        raise SpecError(Problem("profile", str(path), f"cannot be read: {error.strerror}", way_out)) from error
    if missing := set(columns) - set(reader.fieldnames or ()):
        raise SpecError(Problem("profile", str(path), f"has no column {', '.join(sorted(missing))}"))
    return rows
