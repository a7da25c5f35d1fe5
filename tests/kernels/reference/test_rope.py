"""Rotary positions against transformers and as a rotation."""

import pytest
import torch

from ridgeline.kernels.reference.rope import rope


def tables(length: int, head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length), frequencies)
    both = torch.cat((angles, angles), -1)[:, None, None, :]
    return both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_transformers(dtype: torch.dtype) -> None:
    """Output and gradient equal Llama's rotation, bit for bit."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    cos_sb1d, sin_sb1d = tables(6, 8, dtype)
    x = torch.randn(6, 2, 3, 8).to(dtype).requires_grad_()
    theirs = x.detach().clone().requires_grad_()
    out = rope(x, cos_sb1d, sin_sb1d)
    cos_1sd, sin_1sd = cos_sb1d[:, 0].transpose(0, 1), sin_sb1d[:, 0].transpose(0, 1)
    expected, _ = llama.apply_rotary_pos_emb(theirs.permute(1, 2, 0, 3), theirs.permute(1, 2, 0, 3), cos_1sd, sin_1sd)
    assert torch.equal(out, expected.permute(2, 0, 1, 3))
    dy = torch.randn_like(out)
    out.backward(dy)
    expected.permute(2, 0, 1, 3).backward(dy)
    assert x.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(x.grad, theirs.grad, rtol=0, atol=0)


def test_positions_of_each_sample() -> None:
    """A table with a batch dim turns each sample by its own positions."""
    torch.manual_seed(0)
    cos_sb1d, sin_sb1d = tables(6, 8)
    x = torch.randn(6, 2, 3, 8)
    shifted = torch.cat((cos_sb1d, cos_sb1d.roll(1, 0)), 1), torch.cat((sin_sb1d, sin_sb1d.roll(1, 0)), 1)
    out = rope(x, *shifted)
    assert torch.equal(out[:, :1], rope(x[:, :1], cos_sb1d, sin_sb1d))
    assert torch.equal(out[:, 1:], rope(x[:, 1:], cos_sb1d.roll(1, 0), sin_sb1d.roll(1, 0)))


def test_products_depend_on_the_distance_alone() -> None:
    """The product of a turned query and a turned key is the same wherever both stand, and lengths are kept."""
    torch.manual_seed(0)
    cos_sb1d, sin_sb1d = tables(32, 16, torch.float64)
    query, key = (torch.randn(1, 1, 1, 16, dtype=torch.float64).expand(32, -1, -1, -1) for _ in range(2))
    query, key = rope(query, cos_sb1d, sin_sb1d)[:, 0, 0], rope(key, cos_sb1d, sin_sb1d)[:, 0, 0]
    for distance in (0, 3, 20):
        products = (query[distance:] * key[: 32 - distance]).sum(-1)
        torch.testing.assert_close(products, products[:1].expand_as(products))
    torch.testing.assert_close(query.norm(dim=-1), query[:1].norm(dim=-1).expand(32))
