"""DeepSeek's sparse attention against loops, NF4 against its definition."""

import statistics

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ridgeline.kernels.reference.lightning_indexer import lightning_indexer
from ridgeline.kernels.reference.nf4 import BLOCK, LEVELS, dequantise_nf4, nf4_matmul, quantise_nf4
from ridgeline.kernels.reference.sparse_attention import sparse_attention


def wide(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 3), st.integers(1, 7))
def test_the_indexer_picks_the_best(s: int, cached: int, heads: int, topk: int) -> None:
    """Of the keys up to its position each query gets those of the highest score, -1 where there are fewer."""
    query, key, weights = wide(2, s, heads, 4), wide(2, s + cached, 4, seed=1), wide(2, s, heads, seed=2)
    indices, scores = lightning_indexer(query, key, weights, topk=topk)
    q, k, w = (x.detach().numpy() for x in (query, key, weights))
    for sample in range(2):
        for i in range(s):
            products = np.maximum(q[sample, i] @ k[sample, : i + cached + 1].T, 0)
            worth = w[sample, i] @ products
            best = list(np.argsort(-worth, kind="stable")[:topk])
            found = indices[sample, i].tolist()
            assert found[len(best) :] == [-1] * (topk - len(best))
            # Keys that all heads reject are worth exactly nothing, and any of them may be taken.
            np.testing.assert_allclose(worth[found[: len(best)]], worth[best], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(
                scores[sample, i, : len(best)].detach().numpy(), worth[best], rtol=1e-10, atol=1e-12
            )
            assert len(set(found[: len(best)])) == len(best)


def test_the_indexers_gradients() -> None:
    """Gradients of queries, keys and weights through the scores agree with differences."""
    inputs = wide(1, 4, 2, 3), wide(1, 6, 3, seed=1), wide(1, 4, 2, seed=2)
    assert torch.autograd.gradcheck(lambda *x: lightning_indexer(*x, topk=2)[1], inputs)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.data())
def test_sparse_attention_is_the_formula(s: int, cached: int, heads: int, data: st.DataObject) -> None:
    """Each head attends to the picked keys alone, by latents and rotary parts; what lies ahead is not seen."""
    t = s + cached
    rows = [data.draw(st.sets(st.integers(0, t - 1))) | {i + cached} for i in range(s)]
    width = max(map(len, rows))
    indices = torch.tensor([[sorted(row) + [-1] * (width - len(row)) for row in rows]])
    query, latent = wide(1, s, heads, 5), wide(1, t, 5, seed=1)
    query_rope, key_rope = wide(1, s, heads, 2, seed=2), wide(1, t, 2, seed=3)

    def run(*x: Tensor) -> Tensor:
        return sparse_attention(x[0], x[1], indices, query_rope_bsnr=x[2], key_rope_btr=x[3], scale=0.4)

    out = run(query, latent, query_rope, key_rope)
    q, k, qr, kr = (x.detach().numpy()[0] for x in (query, latent, query_rope, key_rope))
    for i in range(s):
        seen = [j for j in sorted(rows[i]) if j <= i + cached]
        for head in range(heads):
            weights = np.exp(0.4 * (k[seen] @ q[i, head] + kr[seen] @ qr[i, head]))
            expected = weights / weights.sum() @ k[seen]
            np.testing.assert_allclose(out[0, i, head].detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(run, (query, latent, query_rope, key_rope), fast_mode=True)


def test_levels_are_quantiles() -> None:
    """The levels are eight negative and nine other quantiles of the normal distribution, scaled to one."""
    offset = 0.9677083  # where the outermost quantiles lie: bitsandbytes, create_normal_map
    normal = statistics.NormalDist()
    upper = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    lower = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.array(sorted([*upper, *lower, 0.0])) / max(upper)
    np.testing.assert_allclose(LEVELS, expected, atol=1e-6)


@given(st.integers(1, 40), st.integers(0, 50), st.sampled_from([1e-3, 1.0, 30.0]))
def test_every_code_is_the_nearest(rows: int, seed: int, size: float) -> None:
    """No other level, at the scale that is kept, lies nearer to an element; the scale errs by an 8-bit step."""
    weight = size * wide(rows, 2 * BLOCK, seed=seed).detach().float()
    packed = quantise_nf4(weight)
    back = dequantise_nf4(packed)
    assert back.shape == weight.shape
    blocks, largest = weight.view(-1, BLOCK), weight.view(-1, BLOCK).abs().amax(1)
    scales = back.view(-1, BLOCK).abs().amax(1)
    step = (largest - largest.mean()).abs().max() / 127
    assert ((scales - largest).abs() <= step / 2 + 1e-5 * size).all()
    choices = scales[:, None, None] * torch.tensor(LEVELS)
    nearest = (blocks[..., None] - choices).abs().amin(-1)
    torch.testing.assert_close((blocks - back.view(-1, BLOCK)).abs(), nearest, rtol=1e-4, atol=1e-6 * size)


def test_it_takes_an_eighth_of_fp32() -> None:
    """Four bits an element, eight a block, and little else."""
    packed = quantise_nf4(torch.randn(256, 512))
    held = sum(x.untyped_storage().nbytes() for x in (packed.codes, packed.scales, packed.scale_scales, packed.mean))
    assert held <= 256 * 512 * (0.5 + 1 / 64) + 64


def test_the_product_is_that_of_what_was_kept() -> None:
    """Output and gradient equal those of the dequantised weight; the packed weight gets none."""
    weight = quantise_nf4(wide(8, 64).detach())
    x, other = (wide(3, 64, seed=1).detach().requires_grad_() for _ in range(2))
    out, expected = nf4_matmul(x, weight), other @ dequantise_nf4(weight).t()
    assert torch.equal(out, expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
