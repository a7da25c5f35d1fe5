"""What a machine says of itself."""

import logging

import pytest

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.capabilities import Software
from ridgeline.kernels.npu.probe import installed_software
from ridgeline.kernels.npu.virtual.load import load_torch_npu
from ridgeline.kernels.runtime.load import kernels_here, load_kernel


@pytest.mark.usefixtures("virtual_npu")
def test_the_virtual_npu_has_no_cann() -> None:
    """The probe reads torch_npu's version and the chip's name, and no version of CANN where there is none."""
    version = load_torch_npu().__version__
    assert installed_software() == Software(torch_npu=version, cann=None, chip="Ascend910B2")


@pytest.mark.usefixtures("virtual_npu")
def test_a_start_replaces_what_is_missing() -> None:
    """Without CANN, a kernel that needs some version of it becomes plain torch, with a line in the log."""
    chosen = [("flash_attention", "npu_fusion_attention"), ("rope", "npu_rotary_mul")]
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("ridgeline.kernels.runtime.load")
    logger.addHandler(handler)
    try:
        functions = kernels_here(chosen, "npu", policy="auto")
    finally:
        logger.removeHandler(handler)
    assert functions == {op: load_kernel(op, name) for op, name in (("flash_attention", "torch"), chosen[1])}
    reason = "flash_attention: torch, the planned kernel is not on this machine"
    assert lines == [f"{reason}; passed over: npu_fusion_attention (cann=None: must be >= 8.5)"]
    with pytest.raises(LoweringError, match=r"cann=None: must be >= 8\.5"):
        kernels_here(chosen, "npu", policy="strict")
