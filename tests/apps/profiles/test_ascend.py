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


def test_a_step_of_a_real_table(tmp_path: Path) -> None:
    """Two ranks' rows of a published profile: the parts that are read make up the step that the profiler measured."""
    # msprof-analyze's reference of its text mode, sample of cluster_step_trace_time.csv; there each row is a rank's.
    header = (
        "Device_id,Step,Computing,Communication(Not Overlapped),Overlapped,Communication,Free,Stage,Bubble,"
        "Communication(Not Overlapped and Exclude Receive),Preparing"
    )
    rows = (
        "4,1,239637.638,109905.202,14826.532,124731.734,297887.055,647429.75,0.0,109905.202,10671.0",
        "7,1,240226.045,401927.422,238997.843,640925.265,3334.33,648737.25,0.0,401927.422,26926.5",
    )
    (profile,) = read_profiles(written(tmp_path, steps="\n".join((header, *rows))))
    # "Stage" is the step without what only waits for other stages; here nothing does.
    assert [step.total_us for step in profile.steps] == pytest.approx([647429.75, 648737.25], rel=0.006)
    assert [step.communication_us - step.exposed_us for step in profile.steps] == pytest.approx([14826.532, 238997.843])


def test_a_table_without_types(tmp_path: Path) -> None:
    """Below level1 kernels have no type and are told apart by name; a run without steps has one, without a number."""
    # The columns and the first two names as in the tests of public readers of torch_npu's tables.
    kernels = """Device_id,Name,Type,Accelerator Core,Start Time(us),Duration(us),Wait Time(us),Block Num
0,aclnnMatmul_MatMulCommon_MatMulV2,N/A,N/A,1774670741777000.0\t,420.50,0.02,8
0,aclnnMul_MulAiCore_Mul,N/A,N/A,1774670741777420.5\t,18.32,64.742,0
0,aclnnMatmul_MatMulCommon_MatMulV2,N/A,N/A,1774670741778000.0\t,420.50,0.02,8
"""
    (profile,) = read_profiles(written(tmp_path, steps=STEPS.replace("0,5,", "0,,"), kernels=kernels))
    assert [(op.name, op.calls, op.total_us) for op in profile.ops] == [
        ("aclnnMatmul_MatMulCommon_MatMulV2", 2, 841.0),
        ("aclnnMul_MulAiCore_Mul", 1, 18.32),
    ]
    assert profile.steps[0].step == 0


def test_damaged_tables(tmp_path: Path) -> None:
    """What is missing is named."""
    with pytest.raises(SpecError, match=r"has no column Communication\(Not Overlapped\)"):
        read_profiles(written(tmp_path / "a", steps="Step,Computing,Communication,Free\n"))
    with pytest.raises(SpecError, match="holds no step"):
        read_profiles(written(tmp_path / "b", steps=STEPS.splitlines()[0]))
    with pytest.raises(SpecError, match="holds no profile of a run"):
        read_profiles(tmp_path)
