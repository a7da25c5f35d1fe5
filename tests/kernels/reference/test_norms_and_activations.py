"""Norms, activations and rotary positions beyond the plain ones, against transformers, torch and numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ridgeline.kernels.reference.add_rms_norm import add_rms_norm
from ridgeline.kernels.reference.bounded_swiglu import bounded_swiglu
from ridgeline.kernels.reference.clamped_swiglu import clamped_swiglu
from ridgeline.kernels.reference.geglu import geglu
from ridgeline.kernels.reference.layer_norm import layer_norm
from ridgeline.kernels.reference.masked_softmax import masked_softmax
from ridgeline.kernels.reference.rms_norm import rms_norm
from ridgeline.kernels.reference.rope import rope
from ridgeline.kernels.reference.squared_relu import squared_relu

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([2, 8, 32]))


def wide(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def check_gradient(function: Callable[..., Any], *inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@given(SHAPES)
def test_zero_centred_rms_norm_is_gemmas(shape: tuple[int, ...]) -> None:
    """Output and gradients equal Gemma 2's norm."""
    gemma = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    theirs = gemma.Gemma2RMSNorm(shape[-1], eps=1e-6)
    torch.manual_seed(0)
    theirs.weight.data.normal_()
    weight = theirs.weight.detach().clone().requires_grad_()
    x, other = (wide(*shape).detach().float().requires_grad_() for _ in range(2))
    out, expected = rms_norm(x, weight, eps=1e-6, zero_centred=True), theirs(other)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    dy = torch.randn(shape)
    out.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)


@given(SHAPES)
def test_add_rms_norm_gives_both(shape: tuple[int, ...]) -> None:
    """The second output is the sum, the first its norm, and gradients of both arrive."""
    x, residual, weight = wide(*shape), wide(*shape, seed=1), wide(shape[-1], seed=2)
    y, total = add_rms_norm(x, residual, weight, eps=1e-5)
    summed = x.detach().numpy() + residual.detach().numpy()
    np.testing.assert_array_equal(total.detach().numpy(), summed)
    norm = summed / np.sqrt((summed**2).mean(-1, keepdims=True) + 1e-5) * weight.detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), norm, rtol=1e-12)
    check_gradient(lambda *args: add_rms_norm(*args, eps=1e-5), x, residual, weight)


@given(SHAPES)
def test_layer_norm_is_the_formula(shape: tuple[int, ...]) -> None:
    """Each vector gets mean zero and variance one, then weight and bias."""
    x, weight, bias = wide(*shape), wide(shape[-1], seed=1), wide(shape[-1], seed=2)
    numbers = x.detach().numpy()
    normed = (numbers - numbers.mean(-1, keepdims=True)) / np.sqrt(numbers.var(-1, keepdims=True) + 1e-5)
    expected = normed * weight.detach().numpy() + bias.detach().numpy()
    np.testing.assert_allclose(layer_norm(x, weight, bias, eps=1e-5).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    check_gradient(lambda *args: layer_norm(*args, eps=1e-5), x, weight, bias)


@pytest.mark.parametrize("approximate", [True, False])
@given(shape=SHAPES)
def test_geglu_is_gemmas(approximate: bool, shape: tuple[int, ...]) -> None:
    """The first half, through transformers' GELU of the same kind, gates the second."""
    activations = pytest.importorskip("transformers.activations").ACT2FN
    x = wide(*shape)
    gate, up = x.detach().chunk(2, -1)
    expected = activations["gelu_pytorch_tanh" if approximate else "gelu"](gate) * up
    torch.testing.assert_close(geglu(x, approximate=approximate), expected)
    check_gradient(lambda value: geglu(value, approximate=approximate), x)


@given(SHAPES, st.floats(0.5, 8), st.floats(1, 2))
def test_clamped_swiglu_is_gpt_osss(shape: tuple[int, ...], limit: float, alpha: float) -> None:
    """Output and gradient equal those of transformers' experts, which bound gate and up."""
    oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")

    class Experts:
        _apply_gate = oss.GptOssExperts._apply_gate

    experts = Experts()
    experts.limit, experts.alpha = limit, alpha  # pyright: ignore[reportAttributeAccessIssue]  what it reads of itself
    x, other = ((3 * wide(*shape)).detach().requires_grad_() for _ in range(2))
    out, expected = clamped_swiglu(x, limit=limit, alpha=alpha), experts._apply_gate(other)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    halves = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    torch.testing.assert_close(clamped_swiglu(halves, limit=limit, alpha=alpha, interleaved=False), expected)


@given(SHAPES, st.floats(0.5, 8))
def test_bounded_swiglu_is_steps(shape: tuple[int, ...], limit: float) -> None:
    """Output and gradient equal those of transformers' experts, which bound what SiLU makes of the gate."""
    step = pytest.importorskip("transformers.models.step3p7.modeling_step3p7")

    class Experts:
        _apply_gate = step.Step3p7Experts._apply_gate

    experts = Experts()
    experts.limit, experts.act_fn = limit, torch.nn.functional.silu  # pyright: ignore[reportAttributeAccessIssue]  as above
    x, other = ((3 * wide(*shape)).detach().requires_grad_() for _ in range(2))
    out, expected = bounded_swiglu(x, limit=limit), experts._apply_gate(other)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@given(SHAPES)
def test_squared_relu_is_nemotrons(shape: tuple[int, ...]) -> None:
    """Output equals transformers' relu2."""
    x = wide(*shape)
    torch.testing.assert_close(squared_relu(x), pytest.importorskip("transformers.activations").ACT2FN["relu2"](x))
    check_gradient(squared_relu, x)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.floats(0.1, 2))
def test_masked_softmax_is_the_formula(heads: int, queries: int, keys: int, scale: float) -> None:
    """Weights of what is not hidden are exponentials over their sum; what is hidden has none, and no gradient."""
    x = wide(2, heads, queries, keys)
    hidden = torch.rand(1, 1, queries, keys, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[..., 0] = False
    weights = np.exp(x.detach().numpy() * scale) * ~hidden.numpy()
    out = masked_softmax(x, hidden, scale=scale)
    np.testing.assert_allclose(out.detach().numpy(), weights / weights.sum(-1, keepdims=True), rtol=1e-10)
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.masked_select(hidden.expand_as(x)).eq(0).all()


@pytest.mark.parametrize("interleaved", [False, True])
@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from([2, 4, 8]), st.sampled_from([0, 3, 8]))
def test_pairs_turn_by_their_angles(interleaved: bool, length: int, heads: int, width: int, rest: int) -> None:
    """As complex numbers, pairs are multiplied by ``exp(i angle)``, and elements past the table stay as they are."""
    x = wide(length, 2, heads, width + rest)
    angles = wide(length, 1, 1, width // 2, seed=1).detach()
    both = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    out = rope(x, both.cos(), both.sin(), interleaved=interleaved).detach().numpy()
    numbers, turn = x.detach().numpy(), np.exp(1j * angles.numpy())
    if interleaved:
        pairs = (numbers[..., 0:width:2] + 1j * numbers[..., 1:width:2]) * turn
        np.testing.assert_allclose(out[..., 0:width:2], pairs.real, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(out[..., 1:width:2], pairs.imag, rtol=1e-12, atol=1e-12)
    else:
        pairs = (numbers[..., : width // 2] + 1j * numbers[..., width // 2 : width]) * turn
        np.testing.assert_allclose(out[..., : width // 2], pairs.real, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(out[..., width // 2 : width], pairs.imag, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(out[..., width:], numbers[..., width:])
    check_gradient(lambda value: rope(value, both.cos(), both.sin(), interleaved=interleaved), x)
