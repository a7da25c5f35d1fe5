"""Every kernel on a real NPU beside its reference: ``pytest -m npu`` where there is one."""

import pytest
import torch

from ridgeline.kernels.npu import gated_delta_rule
from ridgeline.kernels.reference import gated_delta_rule as reference
from tests.kernels.npu.cases import CASES
from tests.kernels.npu.running import arguments_of, everything, moved

pytestmark = pytest.mark.npu


@pytest.fixture(scope="module", autouse=True)
def real_npu() -> None:
    """Skip where torch sees no NPU."""
    pytest.importorskip("torch_npu", exc_type=ImportError)
    if not torch.npu.is_available():  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
        pytest.skip("no NPU on this machine")


def test_the_gated_delta_rule_of_fla() -> None:
    """Outputs, the last state and the gradients of fla's kernels, which triton-ascend compiles, are the reference's."""
    pytest.importorskip("fla")
    results = []
    for rule, device in ((gated_delta_rule.gated_delta_rule, "npu"), (reference.gated_delta_rule, "cpu")):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 130, 4, 64).bfloat16() for _ in "qkv")
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
        leaves = [x.to(device).requires_grad_() for x in (q, k, v, -torch.rand(1, 130, 4), torch.rand(1, 130, 4))]
        output, last = rule(*leaves[:3], log_decay_bsn=leaves[3], beta_bsn=leaves[4], scale=0.125)
        (output.float().square().sum() + last.square().sum()).backward()
        results.append([output, last, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-2, atol=2e-2)  # bf16 keeps eight bits


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
