"""Choosing kernels."""

import re
import subprocess
import sys
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.errors import LoweringError, SpecError
from ridgeline.kernels.capabilities import ASSUMED, CAPABILITIES, Software, capabilities_of
from ridgeline.kernels.select import Choice, Passed, available, kernel_of, select
from ridgeline.kernels.table import KERNELS, Kernel, Limit

FUSED = Kernel(
    op="rms_norm",
    name="npu_rms_norm",
    function="ridgeline.kernels.npu.rms_norm:rms_norm",
    devices=("npu",),
    dtypes=("bfloat16", "float16"),
    limits=(Limit(trait="hidden", maximum=8192),),
)
TABLE = {"rms_norm": (FUSED, KERNELS["rms_norm"][-1])}


def test_the_first_that_can_is_taken() -> None:
    """On its device, in its dtype and within its limits the preferred kernel is chosen, and nothing is passed over."""
    choice = select("rms_norm", device="npu", dtype="bfloat16", traits={"hidden": 4096}, table=TABLE)
    assert choice == Choice(op="rms_norm", kernel="npu_rms_norm", reason="the first that runs on npu in bfloat16")
    assert kernel_of(choice, table=TABLE) == FUSED


@pytest.mark.parametrize(
    ("call", "why"),
    [
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


def test_what_is_not_deterministic_is_passed_over() -> None:
    """Where a job asks for equal bits, kernels without a deterministic gradient are passed over, and said to be."""
    traits = {"latent": 512, "rope_head_dim": 64}
    call = {"device": "npu", "dtype": "bfloat16", "traits": traits}
    assert select("sparse_attention", **call).kernel == "npu_sparse_flash_attention"
    choice = select("sparse_attention", deterministic=True, **call)
    assert str(choice).endswith("; passed over: npu_sparse_flash_attention (not deterministic)")
    with pytest.raises(LoweringError, match=r"npu_sparse_flash_attention \(not deterministic\), torch"):
        select("sparse_attention", deterministic=True, policy="strict", **call)


def test_strict_takes_no_fallback() -> None:
    """Under policy 'strict' a device gets only kernels written for it; the error names each that was passed over."""
    message = (
        "op='rms_norm' has no kernel on device='npu' for dtype=float32; "
        "passed over: npu_rms_norm (dtype), torch (policy='strict')"
    )
    with pytest.raises(LoweringError, match=f"^{re.escape(message)}$"):
        select("rms_norm", device="npu", dtype="float32", policy="strict", table=TABLE)
    assert select("rms_norm", device="cpu", dtype="float32", policy="strict", table=TABLE).kernel == "torch"


@pytest.mark.parametrize(
    ("software", "why"),
    [
        (Software(torch_npu="2.13.0", cann="8.2.RC1"), "cann=8.2.RC1: must be >= 8.5"),
        (Software(torch_npu="2.13.0"), "cann=None: must be >= 8.5"),
        (Software(torch_npu="2.7.1", cann="8.10.0"), "torch_npu=2.7.1: must be >= 2.13"),
    ],
)
def test_old_software_is_passed_over(software: Software, why: str) -> None:
    """A kernel that the installed software lacks is passed over with what it needs, or refused under 'strict'."""
    traits = {"head_dim": 64, "heads": 8, "softcap": 0, "sinks": 1}
    call: dict[str, Any] = {"device": "npu", "dtype": "bfloat16", "traits": traits}
    assert select("flash_attention", **call).kernel == "npu_fusion_attention"
    choice = select("flash_attention", software=software, **call)
    assert choice.kernel == "torch"
    assert choice.passed_over[0] == Passed(kernel="npu_fusion_attention", why=why)
    with pytest.raises(LoweringError, match=re.escape(f"npu_fusion_attention ({why})")):
        select("flash_attention", software=software, policy="strict", **call)


def test_a_machine_gets_what_it_can_run() -> None:
    """Kernels that the software lacks become plain torch and say so; all others stay; 'strict' names each."""
    chosen = [("rope", "npu_rotary_mul"), ("gather_matmul", "npu_all_gather_base_mm"), ("mamba2_scan", "torch")]
    assert [choice.kernel for choice in available(chosen, software=ASSUMED)] == [name for _, name in chosen]
    other = attrs.evolve(ASSUMED, chip="Ascend910_9391")
    choices = available(chosen, software=other)
    assert [choice.kernel for choice in choices] == ["npu_rotary_mul", "torch", "torch"]
    why = "npu_all_gather_base_mm (chip=Ascend910_9391: must be Ascend910B*)"
    assert str(choices[1]).endswith(f"passed over: {why}")
    message = f"run.kernels='strict': this machine lacks gather_matmul: {why}; install it or use 'auto'"
    with pytest.raises(LoweringError, match=f"^{re.escape(message)}$"):
        available(chosen, software=other, policy="strict")


def test_chips_that_a_kernel_is_for() -> None:
    """Fused collectives are for the Atlas A2, whose chips are named Ascend910B."""
    traits = {"tp": 4, "in_features": 1024, "out_features": 1024}
    call: dict[str, Any] = {"device": "npu", "dtype": "bfloat16", "traits": traits}
    assert select("gather_matmul", **call).kernel == "npu_all_gather_base_mm"
    choice = select("gather_matmul", software=attrs.evolve(ASSUMED, chip="Ascend910_9391"), **call)
    assert choice.passed_over == (
        Passed(kernel="npu_all_gather_base_mm", why="chip=Ascend910_9391: must be Ascend910B*"),
    )


@pytest.mark.parametrize(
    ("missing", "why"),
    [("triton_ascend", "triton_ascend=None: must be >= 3.6"), ("fla", "fla=None: must be >= 0.6")],
)
def test_kernels_of_other_packages(missing: str, why: str) -> None:
    """The gated delta rule of flash-linear-attention is planned, and becomes plain torch where a package is missing."""
    name = "fla_chunk_gated_delta_rule"
    call: dict[str, Any] = {"device": "npu", "traits": {"key_head_dim": 128, "value_head_dim": 128}}
    assert select("gated_delta_rule", dtype="bfloat16", **call).kernel == name
    assert select("gated_delta_rule", dtype="float32", **call).passed_over == (Passed(kernel=name, why="dtype"),)
    software = attrs.evolve(ASSUMED, **{missing: None})
    (choice,) = available([("gated_delta_rule", name)], software=software)
    assert str(choice) == (
        f"gated_delta_rule: torch, the planned kernel is not on this machine; passed over: {name} ({why})"
    )
    with pytest.raises(LoweringError, match=re.escape(f"lacks gated_delta_rule: {name} ({why}); install it or")):
        available([("gated_delta_rule", name)], software=software, policy="strict")


def test_what_another_device_has_is_not_passed_over() -> None:
    """On a CPU plain torch is the kernel, not what is left: no other is named, and 'strict' takes it."""
    choice = select("rms_norm", device="cpu", dtype="float32", policy="strict")
    assert (choice.kernel, choice.passed_over) == ("torch", ())


def test_what_no_kernel_can() -> None:
    """A dtype the device lacks, and an op that does not exist, are errors that name the value."""
    with pytest.raises(
        LoweringError,
        match=r"op='rope' has no kernel on device='npu' for dtype=float64; .*npu_rotary_mul \(dtype\), torch \(dtype\)",
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
