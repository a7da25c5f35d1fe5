"""What experts need: routing, moving tokens, products by group; against transformers, loops and Megatron-core."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ridgeline.kernels.reference.grouped_matmul import grouped_matmul
from ridgeline.kernels.reference.matmul_add import matmul_add
from ridgeline.kernels.reference.permute import permute, permute_by_map, unpermute, unpermute_by_map
from ridgeline.kernels.reference.router_topk import router_topk
from ridgeline.kernels.reference.sparsemixer import sparsemixer

COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any)
"""Rows of each group."""


def wide(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@st.composite
def routings(draw: Any) -> Tensor:
    """The experts of each token, (t, k), none twice."""
    experts = draw(st.integers(1, 6))
    topk = draw(st.integers(1, experts))
    choice = st.permutations(range(experts)).map(lambda order: order[:topk])
    return torch.tensor(draw(st.lists(choice, min_size=1, max_size=7)))


@settings(max_examples=40)
@given(routings())
def test_rows_stand_by_expert_and_come_back(experts_tk: Tensor) -> None:
    """Rows are ordered by expert, then token; places tell where each choice is; weighted sums come back."""
    tokens = wide(len(experts_tk), 3)
    rows, places = permute(tokens, experts_tk)
    order = sorted((expert, token) for token, chosen in enumerate(experts_tk.tolist()) for expert in chosen)
    for row, (_, token) in zip(rows, order, strict=True):
        assert torch.equal(row, tokens[token])
    for index, place in enumerate(places.tolist()):
        token, choice = divmod(index, experts_tk.shape[1])
        assert order[place] == (experts_tk[token, choice].item(), token)
    weights = wide(*experts_tk.shape, seed=1)
    back = unpermute(rows, places, weights)
    torch.testing.assert_close(back, tokens * weights.sum(1, keepdim=True))
    assert torch.autograd.gradcheck(
        lambda x, w: unpermute(permute(x, experts_tk)[0], places, w), (tokens, weights), fast_mode=True
    )


@settings(max_examples=40)
@given(routings())
def test_the_map_form_is_megatrons(experts_tk: Tensor) -> None:
    """Rows, their weights and what comes back equal Megatron-core's permute and unpermute."""
    upstream = pytest.importorskip("megatron.core.transformer.moe.moe_utils")
    tokens, experts = wide(len(experts_tk), 3), int(experts_tk.max()) + 1
    map_te = torch.zeros(len(experts_tk), experts, dtype=torch.bool).scatter(1, experts_tk, True)
    probs = wide(*map_te.shape, seed=1)
    rows, weights, places = permute_by_map(tokens, map_te, probs, topk=experts_tk.shape[1])
    theirs = upstream.permute(tokens, map_te, probs=probs)
    assert torch.equal(rows, theirs[0])
    assert torch.equal(weights, theirs[1])
    back = unpermute_by_map(rows, places, map_te)
    torch.testing.assert_close(back, upstream.unpermute(rows, theirs[2], tokens.shape))

    def there_and_back(tokens: Tensor) -> Tensor:
        return unpermute_by_map(permute_by_map(tokens, map_te, probs, topk=1)[0], places, map_te)

    assert torch.autograd.gradcheck(there_and_back, tokens, fast_mode=True)


@st.composite
def routers(draw: Any) -> dict[str, Any]:
    """Options of a router over groups of at least two experts."""
    groups = draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    size = draw(st.integers(2, 4))
    return {
        "groups": groups,
        "groups_kept": kept,
        "topk": draw(st.integers(1, kept * size)),
        "scoring": draw(st.sampled_from(["softmax", "sigmoid"])),
        "renormalise": draw(st.booleans()),
        "scale": draw(st.sampled_from([1.0, 2.5])),
        "experts": groups * size,
        "bias": draw(st.booleans()),
    }


@given(routers(), st.integers(0, 100))
def test_routing_is_the_formula(options: dict[str, Any], seed: int) -> None:
    """Each token gets the best experts of the best groups by biased score, weighing their scores without the bias."""
    options = dict(options)
    experts, bias = options.pop("experts"), options.pop("bias")
    logits = wide(5, experts, seed=seed)
    bias_e = wide(experts, seed=seed + 1).detach() if bias else None
    weights, chosen = router_topk(logits, bias_e=bias_e, **options)
    numbers = logits.detach().numpy()
    exponentials = np.exp(numbers)
    scores = (
        exponentials / exponentials.sum(-1, keepdims=True)
        if options["scoring"] == "softmax"
        else 1 / (1 + 1 / exponentials)
    )
    for token in range(5):
        ranked = scores[token] + (bias_e.numpy() if bias_e is not None else 0)
        size = experts // options["groups"]
        worth = [sum(sorted(ranked[group * size : (group + 1) * size])[-2:]) for group in range(options["groups"])]
        kept = sorted(range(options["groups"]), key=lambda group: -worth[group])[: options["groups_kept"]]
        allowed = [expert for expert in range(experts) if expert // size in kept or options["groups"] == 1]
        best = sorted(allowed, key=lambda expert: -ranked[expert])[: options["topk"]]
        assert chosen[token].tolist() == best
        expected = scores[token][best]
        if options["renormalise"]:
            expected = expected / expected.sum()
        np.testing.assert_allclose(weights[token].detach().numpy(), expected * options["scale"], rtol=1e-10)
    assert torch.autograd.gradcheck(lambda x: router_topk(x, bias_e=bias_e, **options)[0], logits, fast_mode=True)


def test_routing_is_deepseeks() -> None:
    """Choice and weights equal transformers' DeepSeek-V3, groups and correction bias included."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = pytest.importorskip("transformers").DeepseekV3Config(
        n_routed_experts=32, n_group=8, topk_group=4, num_experts_per_tok=6, routed_scaling_factor=2.5, hidden_size=16
    )
    router = deepseek.DeepseekV3TopkRouter(config)
    torch.manual_seed(0)
    bias = torch.randn(32)
    router.weight.data.normal_()
    router.e_score_correction_bias.copy_(bias)
    logits, weights, experts = router(torch.randn(20, 16))
    ours, chosen = router_topk(
        logits, topk=6, scoring="sigmoid", renormalise=True, bias_e=bias, groups=8, groups_kept=4, scale=2.5
    )
    order, other = chosen.argsort(-1), experts.argsort(-1)
    assert torch.equal(chosen.gather(-1, order), experts.gather(-1, other))
    torch.testing.assert_close(ours.gather(-1, order), weights.gather(-1, other))


@pytest.mark.parametrize("sample", [False, True])
@given(seed=st.integers(0, 200), experts=st.integers(2, 9), jitter=st.sampled_from([0.01, 0.2]))
def test_sparsemixer_is_phis(sample: bool, seed: int, experts: int, jitter: float) -> None:
    """Experts, weights and gradients equal transformers' under the same draws.

    It draws for the second weight's third order once more than it must, so that this weight may be three times ours
    or a third of it; its gradient does not depend on that.
    """
    phi = pytest.importorskip("transformers.models.phimoe.modeling_phimoe")
    ours, theirs = (wide(6, experts, seed=seed).detach().float().requires_grad_() for _ in range(2))
    torch.manual_seed(seed)
    weights, chosen = sparsemixer(ours, jitter=jitter, sample=sample)
    torch.manual_seed(seed)
    expected, other = phi.sparsemixer(theirs, jitter, sample)
    assert torch.equal(chosen, other)
    torch.testing.assert_close(weights[:, 0], expected[:, 0])
    ratio = weights[:, 1] / expected[:, 1]
    assert all(min(abs(value - whole) for whole in (1.0, 0.3333, 3.0003)) < 1e-3 for value in ratio.tolist())
    dy = torch.randn(6, 2)
    weights.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad)


@settings(max_examples=30)
@given(COUNTS)
def test_groups_are_multiplied_apart(counts: list[int]) -> None:
    """Row i meets the matrix of its group; gradients agree with differences, empty groups included."""
    x, weight = wide(sum(counts), 3), wide(len(counts), 2, 3, seed=1)
    group_of_row = np.repeat(np.arange(len(counts)), counts)
    expected = np.einsum("mk,mnk->mn", x.detach().numpy(), weight.detach().numpy()[group_of_row])
    out = grouped_matmul(x, weight.unbind(), torch.tensor(counts))
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda a, b: grouped_matmul(a, b.unbind(), torch.tensor(counts)), (x, weight), fast_mode=True
    )


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_weight_gradients_add_up_in_fp32(counts: list[int], dtype: torch.dtype) -> None:
    """The sum grows by the gradient of the exact product, rounded once, over two calls; the weight gets none."""
    weight, total = wide(len(counts), 2, 3, seed=1).detach().to(dtype).requires_grad_(), torch.zeros(len(counts), 2, 3)
    exact = np.zeros(total.shape)
    for seed in (0, 5):
        x, dy = (
            wide(sum(counts), 3, seed=seed).detach().to(dtype),
            wide(sum(counts), 2, seed=seed + 1).detach().to(dtype),
        )
        grouped_matmul(x.requires_grad_(), weight.unbind(), torch.tensor(counts), grad_sum_enk=total).backward(dy)
        begin = 0
        for group, count in enumerate(counts):
            rows = slice(begin, begin + count)
            exact[group] += dy.double().numpy()[rows].T @ x.detach().double().numpy()[rows]
            begin += count
        assert x.grad is not None
    assert weight.grad is None
    np.testing.assert_allclose(total.numpy(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_is_added_to_its_sum(dtype: torch.dtype) -> None:
    """``dy^T x`` of half precision is added without being rounded to half precision."""
    total, dy, x = (wide(*shape).detach() for shape in ((4, 6), (50, 4), (50, 6)))
    total, dy, x = total.float(), dy.to(dtype), x.to(dtype)
    exact = total.double() + dy.double().t() @ x.double()
    matmul_add(total, dy, x)
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=1e-5)
