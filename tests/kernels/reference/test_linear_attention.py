"""Scans of linear attention and Mamba against their recurrences and transformers, convolution against a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ridgeline.kernels.reference.causal_conv1d import causal_conv1d
from ridgeline.kernels.reference.gated_delta_rule import gated_delta_rule
from ridgeline.kernels.reference.mamba2_scan import mamba2_scan

LENGTHS = st.sampled_from([1, 5, 63, 64, 65, 130])


def wide(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def delta_inputs(length: int, heads: int, batch: int = 2) -> tuple[Tensor, ...]:
    """Queries, keys of length one, values, decays and strengths."""
    q, k = (torch.nn.functional.normalize(wide(batch, length, heads, 4, seed=seed).detach(), dim=-1) for seed in (0, 1))
    decay = -torch.nn.functional.softplus(wide(batch, length, heads, seed=3).detach())
    beta = wide(batch, length, heads, seed=4).detach().sigmoid()
    return tuple(x.requires_grad_() for x in (q, k, wide(batch, length, heads, 6, seed=2).detach(), decay, beta))


@settings(max_examples=12)
@given(LENGTHS, st.integers(1, 3), st.booleans())
def test_the_delta_rule_is_its_recurrence(length: int, heads: int, resumed: bool) -> None:
    """Chunks give what position after position gives, output and memory, from an empty memory or another."""
    q, k, v, decay, beta = delta_inputs(length, heads)
    first = wide(2, heads, 4, 6, seed=5).detach() if resumed else None
    out, state = gated_delta_rule(q, k, v, log_decay_bsn=decay, beta_bsn=beta, scale=0.5, state_bnkv=first)
    memory = np.zeros((2, heads, 4, 6)) if first is None else first.numpy().copy()
    numbers = [x.detach().numpy() for x in (q, k, v, decay, beta)]
    for i in range(length):
        qi, ki, vi, gi, bi = (x[:, i] for x in numbers)
        memory = np.exp(gi)[..., None, None] * memory
        read = np.einsum("bnkv,bnk->bnv", memory, ki)
        memory = memory + np.einsum("bnk,bnv->bnkv", ki, bi[..., None] * (vi - read))
        expected = np.einsum("bnkv,bnk->bnv", memory, 0.5 * qi)
        np.testing.assert_allclose(out[:, i].detach().numpy(), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(state.detach().numpy(), memory, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [5, 70])
def test_the_delta_rule_is_qwen3_nexts(length: int) -> None:
    """Output and all gradients equal transformers' chunked form."""
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    ours, theirs = ([x.detach().float().requires_grad_() for x in delta_inputs(length, heads=2)] for _ in range(2))
    out, _ = gated_delta_rule(*ours[:3], log_decay_bsn=ours[3], beta_bsn=ours[4], scale=4**-0.5)
    expected, _ = qwen.torch_chunk_gated_delta_rule(*theirs[:3], g=theirs[3], beta=theirs[4])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    out.backward(dy)
    expected.backward(dy)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_the_delta_rules_gradients() -> None:
    """Gradients over two chunks agree with differences."""

    def run(*inputs: Tensor) -> Tensor:
        q, k, v, decay, beta = inputs
        return gated_delta_rule(q, k, v, log_decay_bsn=decay, beta_bsn=beta, scale=0.5)[0]

    assert torch.autograd.gradcheck(run, delta_inputs(66, heads=1, batch=1), fast_mode=True)


def mamba_inputs(length: int, heads: int, groups: int) -> tuple[Tensor, ...]:
    """x, dt, a, b, c and skip."""
    dt = torch.nn.functional.softplus(wide(2, length, heads, seed=1).detach())
    a = -wide(heads, seed=2).detach().exp()
    projections = (wide(2, length, groups, 5, seed=seed).detach() for seed in (3, 4))
    tensors = (wide(2, length, heads, 4).detach(), dt, a, *projections, wide(heads, seed=5).detach())
    return tuple(x.requires_grad_() for x in tensors)


@settings(max_examples=12)
@given(LENGTHS, st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_the_scan_is_its_recurrence(length: int, groups: int, repeats: int, resumed: bool) -> None:
    """Chunks give what position after position gives, output and state, from zeros or another state."""
    heads = groups * repeats
    x, dt, a, b, c, skip = mamba_inputs(length, heads, groups)
    first = wide(2, heads, 4, 5, seed=6).detach() if resumed else None
    y, state = mamba2_scan(x, dt, a, b, c, skip_n=skip, state_bnpd=first)
    held = np.zeros((2, heads, 4, 5)) if first is None else first.numpy().copy()
    xs, dts, decay, bs, cs, skips = (t.detach().numpy() for t in (x, dt, a, b, c, skip))
    for i in range(length):
        step = dts[:, i][..., None, None]
        write, read = np.repeat(bs[:, i], repeats, 1), np.repeat(cs[:, i], repeats, 1)
        held = np.exp(step * decay[:, None, None]) * held + step * xs[:, i][..., None] * write[:, :, None]
        expected = np.einsum("bnpd,bnd->bnp", held, read) + skips[:, None] * xs[:, i]
        np.testing.assert_allclose(y[:, i].detach().numpy(), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(state.detach().numpy(), held, rtol=1e-9, atol=1e-10)


def test_the_scans_gradients() -> None:
    """Gradients over two chunks agree with differences."""
    inputs = mamba_inputs(66, heads=2, groups=1)
    assert torch.autograd.gradcheck(
        lambda *tensors: mamba2_scan(*tensors[:5], skip_n=tensors[5])[0], inputs, fast_mode=True
    )


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_the_convolution_is_a_loop(length: int, channels: int, width: int, biased: bool) -> None:
    """Each position sums its own and the positions before it, by channel, then SiLU."""
    x, weight = wide(2, length, channels), wide(channels, width, seed=1)
    bias = wide(channels, seed=2) if biased else None
    out = causal_conv1d(x, weight, bias)
    numbers, taps = x.detach().numpy(), weight.detach().numpy()
    for i in range(length):
        total = np.zeros((2, channels)) + (bias.detach().numpy() if bias is not None else 0)
        for tap in range(width):
            if i - tap >= 0:
                total = total + taps[:, width - 1 - tap] * numbers[:, i - tap]
        np.testing.assert_allclose(out[:, i].detach().numpy(), total / (1 + np.exp(-total)), rtol=1e-9, atol=1e-10)
    assert torch.autograd.gradcheck(causal_conv1d, (x, weight) if bias is None else (x, weight, bias), fast_mode=True)
