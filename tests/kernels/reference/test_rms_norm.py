"""RMSNorm against transformers and against numbers of twice the precision."""

import numpy as np
import pytest
import torch

from ridgeline.kernels.reference.rms_norm import rms_norm


def test_it_equals_transformers() -> None:
    """Output and both gradients equal Llama's norm in fp32."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    theirs = llama.LlamaRMSNorm(24, eps=1e-5)
    theirs.weight.data.normal_()
    weight = theirs.weight.detach().clone().requires_grad_()
    x_theirs, x = (torch.randn(5, 3, 24, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    out, expected = rms_norm(x, weight, eps=1e-5), theirs(x_theirs)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    dy = torch.randn(5, 3, 24)
    out.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, x_theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_rounded_once(dtype: torch.dtype) -> None:
    """In any dtype the output is the exact value to half a unit in the last place (and fp32's own error)."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 96).to(dtype), torch.randn(96).to(dtype)
    wide = x.double().numpy()
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight.double().numpy()
    error = np.abs(rms_norm(x, weight, eps=1e-6).double().numpy() - exact)
    assert (error <= np.abs(exact) * (torch.finfo(dtype).eps / 2 + 1e-6)).all()
