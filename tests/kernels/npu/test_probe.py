"""What a machine says of itself."""

import pytest

from ridgeline.kernels.capabilities import Software
from ridgeline.kernels.npu.probe import installed_software
from ridgeline.kernels.npu.virtual.load import load_torch_npu


@pytest.mark.usefixtures("virtual_npu")
def test_the_virtual_npu_has_no_cann() -> None:
    """The probe reads torch_npu's version and the chip's name, and no version of CANN where there is none."""
    version = load_torch_npu().__version__
    assert installed_software() == Software(torch_npu=version, cann=None, chip="Ascend910B2")
