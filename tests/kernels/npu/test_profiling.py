"""Profiling a run with torch_npu.profiler, on the virtual NPU."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from ridgeline.apps.profiles import ascend
from ridgeline.core.job import Profile
from ridgeline.kernels.device.profiling import profiled

LEVELS = get_args(get_type_hints(Profile)["level"])


@pytest.mark.usefixtures("virtual_npu")
@pytest.mark.parametrize("level", LEVELS)
def test_torch_npu_takes_every_call(level: str, tmp_path: Path) -> None:
    """A profiler of every level, with all that can be kept, runs through its steps and writes its folder."""
    profile = Profile(start=2, end=4, level=level, cpu=True, stack=True, memory=True, shapes=True)  # pyright: ignore[reportArgumentType]
    with profiled("npu", profile, folder=tmp_path, rank=0, done=0) as end_step:
        profiler = end_step.__self__
        actions = []
        for _ in range(5):
            actions.append(profiler.current_action.name)
            end_step()
    assert actions == ["NONE", "WARMUP", "RECORD", "RECORD_AND_SAVE", "NONE"]
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("rank0_")
    assert folder.name.endswith("_ascend_pt")


@pytest.mark.usefixtures("virtual_npu")
def test_the_tables_columns_are_torch_npus() -> None:
    """What is read of its tables is what torch_npu writes."""
    from torch_npu.profiler.analysis.prof_common_func._csv_headers import CsvHeaders
    from torch_npu.profiler.analysis.prof_view._kernel_view_parser import KernelViewParser
    from torch_npu.profiler.analysis.prof_view._trace_step_time_parser import TraceStepTimeParser

    assert TraceStepTimeParser.STEP_TRACE == ascend.STEPS
    assert {ascend.COMPUTE, ascend.EXPOSED, ascend.COMMUNICATION, ascend.FREE} <= set(TraceStepTimeParser.title)
    assert KernelViewParser.KERNEL_VIEW == ascend.KERNELS
    assert {ascend.NAME, ascend.TYPE, ascend.DURATION} <= set(CsvHeaders.OP_SUMMARY_KERNEL_BASE_HEADERS)
