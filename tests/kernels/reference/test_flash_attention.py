"""General attention against loops over positions, torch's own attention and differences."""

import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import scaled_dot_product_attention

from ridgeline.kernels.masks import CAUSAL
from ridgeline.kernels.reference.flash_attention import flash_attention
from tests.kernels.reference.attention_cases import LAYOUTS, Call, calls


@settings(max_examples=80)
@given(calls())
def test_it_is_the_formula(call: Call) -> None:
    """In every layout and under every mask, each query gets the weighted mean of exactly the values it may see."""
    out = flash_attention(*call.tensors(torch.float64), **call.options())
    expected = call.laid_out([torch.from_numpy(part) for part in call.by_loops()])
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(calls())
def test_gradients_agree_with_differences(call: Call) -> None:
    """In float64 the gradients of queries, keys, values and sinks are limits of differences."""
    options = call.options()
    sinks = () if options["sinks_n"] is None else (options.pop("sinks_n").detach().double().requires_grad_(),)

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return flash_attention(*inputs[:3], **options, **({"sinks_n": inputs[3]} if sinks else {}))

    assert torch.autograd.gradcheck(run, (*call.tensors(torch.float64), *sinks), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS[:-1])
def test_it_equals_torchs_own(layout: str) -> None:
    """Causal attention with grouped heads gives torch's output and gradients."""
    size = {"s": (9, 9), "t": (9, 9), "g": 2, "n": 6, "d": 8, "v": 8}
    call = Call(layout=layout, mask=CAUSAL, sinks=False, alibi=False, softcap=None, **size)
    ours, theirs = call.tensors(), [x.detach().requires_grad_() for x in call.tensors()]
    out = flash_attention(*ours, **call.options())

    def heads_first(x: torch.Tensor) -> torch.Tensor:
        if layout in ("SBH", "BSH"):
            x = x.unflatten(-1, (-1, 8))
        order = {"SBH": (1, 2, 0, 3), "BSH": (0, 2, 1, 3), "BSND": (0, 2, 1, 3), "BNSD": (0, 1, 2, 3)}[layout]
        return x.permute(order)

    query, key, value = map(heads_first, theirs)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(heads_first(out), expected, rtol=1e-5, atol=1e-6)
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    heads_first(out).backward(dy)
    expected.backward(dy)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=2e-6)


def test_dropout_keeps_the_mean() -> None:
    """Dropped weights are zero and the others are scaled up, so that the mean stays."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 256, 8)
    out = flash_attention(
        query, key, torch.ones(1, 2, 256, 8), layout="BNSD", heads=2, scale=0.1, mask=CAUSAL, dropout=0.25
    )
    assert abs(out[:, :, 64:].mean().item() - 1) < 0.02
    assert out[:, :, 64:].std() > 0.01
