"""Choosing kernels."""

import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.errors import LoweringError, SpecError
from ridgeline.kernels.capabilities import CAPABILITIES, capabilities_of
from ridgeline.kernels.select import Choice, Passed, kernel_of, select
from ridgeline.kernels.table import KERNELS, Kernel, Limit

FUSED = Kernel(
    op="rms_norm",
    name="npu_rms_norm",
    function="ridgeline.kernels.npu.rms_norm:rms_norm",
    devices=("npu",),
    dtypes=("bfloat16", "float16"),
    limits=(Limit(trait="hidden", maximum=8192),),
)
TABLE = {"rms_norm": (FUSED, *KERNELS["rms_norm"])}


def test_the_first_that_can_is_taken() -> None:
    """On its device, in its dtype and within its limits the preferred kernel is chosen, and nothing is passed over."""
    choice = select("rms_norm", device="npu", dtype="bfloat16", traits={"hidden": 4096}, table=TABLE)
    assert choice == Choice(op="rms_norm", kernel="npu_rms_norm", reason="the first that runs on npu in bfloat16")
    assert kernel_of(choice, table=TABLE) == FUSED


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"device": "cpu", "dtype": "bfloat16", "traits": {"hidden": 4096}}, "device"),
        ({"device": "npu", "dtype": "float32", "traits": {"hidden": 4096}}, "dtype"),
        ({"device": "npu", "dtype": "bfloat16", "traits": {"hidden": 9000}}, "hidden=9000: must be <= 8192"),
        ({"device": "npu", "dtype": "bfloat16"}, "hidden not given"),
    ],
)
def test_a_fallback_leaves_its_trace(call: dict[str, Any], why: str) -> None:
    """When the preferred kernel cannot, plain torch is chosen and the choice says what was passed over and why."""
    choice = select("rms_norm", table=TABLE, **call)
    assert choice.kernel == "torch"
    assert choice.passed_over == (Passed(kernel="npu_rms_norm", why=why),)
    assert str(choice).endswith(f"; passed over: npu_rms_norm ({why})")


def test_strict_takes_no_fallback() -> None:
    """Under policy 'strict' a device gets only kernels written for it; the error names each that was passed over."""
    message = (
        "op='rms_norm' has no kernel on device='npu' for dtype=float32; "
        "passed over: npu_rms_norm (dtype), torch (policy='strict')"
    )
    with pytest.raises(LoweringError, match=f"^{re.escape(message)}$"):
        select("rms_norm", device="npu", dtype="float32", policy="strict", table=TABLE)
    assert select("rms_norm", device="cpu", dtype="float32", policy="strict", table=TABLE).kernel == "torch"


def test_what_no_kernel_can() -> None:
    """A dtype the device lacks, and an op that does not exist, are errors that name the value."""
    with pytest.raises(
        LoweringError, match=r"op='rope' has no kernel on device='npu' for dtype=float64; .*torch \(dtype\)"
    ):
        select("rope", device="npu", dtype="float64")
    with pytest.raises(LoweringError, match=r"op='rmsnorm': unknown; did you mean 'rms_norm'\?"):
        select("rmsnorm", device="cpu", dtype="float32")
    with pytest.raises(SpecError, match=r"device='tpu': unknown"):
        capabilities_of("tpu")


@given(st.sampled_from(sorted(KERNELS)), st.sampled_from(sorted(CAPABILITIES)), st.data())
def test_every_op_runs_wherever_its_dtype_does(op: str, device: Any, data: st.DataObject) -> None:
    """Under 'auto' every op has a kernel on every device, in every dtype of the device."""
    dtype = data.draw(st.sampled_from(CAPABILITIES[device].dtypes))
    choice = select(op, device=device, dtype=dtype)
    assert device in kernel_of(choice).devices
    assert dtype in kernel_of(choice).dtypes


def test_choosing_loads_no_torch() -> None:
    """The table and the selection import neither torch nor numpy."""
    code = (
        "import sys; from ridgeline.kernels.select import select; select('rope', device='npu', dtype='bfloat16'); "
        "assert not {'torch', 'numpy', 'torch_npu'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
