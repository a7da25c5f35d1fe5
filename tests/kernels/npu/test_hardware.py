"""Every kernel on a real NPU beside its reference: ``pytest -m npu`` where there is one."""

import pytest
import torch

from tests.kernels.npu.cases import CASES
from tests.kernels.npu.running import arguments_of, everything, moved

pytestmark = pytest.mark.npu


@pytest.fixture(scope="module", autouse=True)
def real_npu() -> None:
    """Skip where torch sees no NPU."""
    pytest.importorskip("torch_npu", exc_type=ImportError)
    if not torch.npu.is_available():  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
        pytest.skip("no NPU on this machine")


@pytest.mark.parametrize("name", CASES)
def test_numbers_equal_the_reference(name: str) -> None:
    """Within what the cube's products of fp32 lose (HF32 keeps eleven bits), and half precision elsewhere."""
    case = CASES[name]
    expected = everything(case, "torch", moved(arguments_of(case), lambda x: x))
    got = everything(case, case.kernel, moved(arguments_of(case), lambda x: x.to("npu")))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(
            ours.detach().cpu(), theirs.detach(), rtol=max(case.rtol, 2e-3), atol=max(case.atol, 2e-3)
        )
