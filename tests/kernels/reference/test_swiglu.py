"""SwiGLU against the formula in twice the precision, and its gradient against differences."""

import numpy as np
import torch

from ridgeline.kernels.reference.swiglu import swiglu


def test_it_is_the_formula() -> None:
    """The first half gates the second: gate / (1 + exp(-gate)) * up."""
    torch.manual_seed(0)
    x = torch.randn(7, 2, 24)
    gate, up = np.split(x.double().numpy(), 2, axis=-1)
    np.testing.assert_allclose(swiglu(x).numpy(), gate / (1 + np.exp(-gate)) * up, rtol=1e-5, atol=1e-6)


def test_its_gradient() -> None:
    """The gradient agrees with finite differences."""
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(swiglu, torch.randn(3, 8, dtype=torch.float64, requires_grad=True))
