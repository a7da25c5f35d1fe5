"""The tables of torch_npu.profiler, read."""

from pathlib import Path

import pytest

from ridgeline.apps.profiles import ascend
from ridgeline.apps.profiles.folders import read_profiles
from ridgeline.core.errors import SpecError

# Made as torch_npu 2.13 does (profiler/analysis/prof_view); tests/kernels/npu/test_profiling.py checks the columns.
STEPS = """Device_id,Step,Computing,Communication(Not Overlapped),Overlapped,Communication,Free,Stage,Bubble
0,5,700.5,100.0,50.0,150.0,199.5,0,0
0,6,800.5,100.0,50.0,150.0,99.5,0,0
"""
KERNELS = """Device_id,Name,Type,Accelerator Core,Start Time(us),Duration(us)
0,aclnnMatmul_1,MatMulV2,AI_CORE,1.0,300.0
0,aclnnMatmul_2,MatMulV2,AI_CORE,400.0,350.0
0,aclnnRmsNorm_1,RmsNorm,AI_VECTOR_CORE,800.0,50.5
"""


def written(folder: Path, steps: str = STEPS, kernels: str = KERNELS) -> Path:
    """A rank's tables in the folder of a profile."""
    results = folder / "rank2_20260101_ascend_pt" / ascend.RESULTS
    results.mkdir(parents=True)
    (results / ascend.STEPS).write_text(steps)
    (results / ascend.KERNELS).write_text(kernels)
    return folder


def test_tables_are_read(tmp_path: Path) -> None:
    """Steps as they stand, a step's time the sum of its three parts; kernels by type."""
    (profile,) = read_profiles(written(tmp_path))
    assert profile.rank == 2
    assert [(step.step, step.total_us, step.idle_us) for step in profile.steps] == [
        (5, 1000.0, 199.5),
        (6, 1000.0, 99.5),
    ]
    assert [(op.name, op.calls, op.total_us) for op in profile.ops] == [("MatMulV2", 2, 650.0), ("RmsNorm", 1, 50.5)]


def test_damaged_tables(tmp_path: Path) -> None:
    """What is missing is named."""
    with pytest.raises(SpecError, match=r"has no column Communication\(Not Overlapped\)"):
        read_profiles(written(tmp_path / "a", steps="Step,Computing,Communication,Free\n"))
    with pytest.raises(SpecError, match="holds no step"):
        read_profiles(written(tmp_path / "b", steps=STEPS.splitlines()[0]))
    with pytest.raises(SpecError, match="holds no profile of a run"):
        read_profiles(tmp_path)
