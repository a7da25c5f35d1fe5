"""Who goes to which expert, by brute force: groups, biases, scales, and what an expert has no room for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.model import Moe
from ridgeline.kernels.reference.sparsemixer import sparsemixer
from ridgeline.models.runtime.routing import capacity_of, mix, route, within_capacity


def by_hand(logits: np.ndarray, moe: Moe, bias: np.ndarray | None) -> np.ndarray:
    """Weights of the chosen experts in float64, a token at a time, by sorting."""
    weights = np.zeros_like(logits)
    for token, row in enumerate(logits):
        scores = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        if moe.score == "sigmoid":
            scores = 1 / (1 + np.exp(-row))
        ranked = scores if bias is None else scores + bias
        size = len(row) // moe.groups
        counted = {"max": 1, "top2": 2}[moe.group_score]
        best = [sum(sorted(ranked[g * size : (g + 1) * size])[-counted:]) for g in range(moe.groups)]
        open_groups = sorted(range(moe.groups), key=lambda group: -best[group])[: moe.group_topk]
        allowed = [expert for expert in range(len(row)) if expert // size in open_groups]
        chosen = sorted(allowed, key=lambda expert: -ranked[expert])[: moe.topk]
        total = sum(scores[chosen]) if moe.normalize_topk else 1.0
        for expert in chosen:
            weights[token, expert] = scores[expert] / total * moe.topk_scale
    return weights


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("groups", [None, "max", "top2"])
@pytest.mark.parametrize("biased", [False, True])
def test_the_best_experts_of_the_best_groups(score, normalize, groups, biased):
    limits = {"groups": 4, "group_topk": 2, "group_score": groups} if groups else {}
    moe = Moe(
        experts=12,
        topk=3,
        ffn_hidden=8,
        score=score,
        normalize_topk=normalize,
        topk_scale=1.7,
        expert_bias=biased,
        **limits,
    )
    rng = np.random.default_rng(3)
    logits, bias = rng.normal(size=(40, 12)), rng.normal(size=12) * 0.2 if biased else None
    routed = route(torch.tensor(logits).float(), moe, None if bias is None else torch.tensor(bias).float())
    expected = by_hand(logits, moe, bias)
    np.testing.assert_allclose(routed.weights_ne.numpy(), expected, rtol=2e-6, atol=1e-7)  # of fp32
    assert np.array_equal(routed.chosen_ne.numpy(), expected > 0)


@given(
    st.integers(2, 30),
    st.integers(2, 6),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["probs", "position"]),
    st.data(),
)
def test_an_expert_takes_no_more_than_its_capacity(tokens, experts, capacity, pad, drop, data):
    topk = data.draw(st.integers(1, experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    chosen = np.argsort(rng.random((tokens, experts)), axis=1) < topk
    weights = np.where(chosen, rng.uniform(0.1, 1, (tokens, experts)), 0)
    ours = within_capacity(torch.tensor(weights), torch.tensor(chosen), capacity=capacity, drop=drop, pad=pad).numpy()
    for expert in range(experts):
        wanted = [token for token in range(tokens) if chosen[token, expert]]
        if drop == "probs":
            wanted.sort(key=lambda token: -weights[token, expert])
        kept = set(wanted[:capacity])
        taken = set(np.flatnonzero(ours[:, expert]))
        if pad:
            assert kept <= taken
            assert len(taken) == min(capacity, tokens)
        else:
            assert taken == kept


@pytest.mark.parametrize("sample", [False, True])
def test_sparsemixer_chooses_two(sample):
    """Two experts a token: in evaluation the two best, in training often others."""
    moe = Moe(experts=6, topk=2, ffn_hidden=8, score="sparsemixer", normalize_topk=False, nearness=0.2)
    logits = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        routed = mix(logits, moe, sparsemixer=sparsemixer, sample=sample)
    assert (routed.chosen_ne.sum(-1) == 2).all()
    assert (routed.weights_ne[~routed.chosen_ne] == 0).all()
    assert (routed.weights_ne[routed.chosen_ne] > 0).all()
    best = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(2).indices, True)
    same = (routed.chosen_ne == best).all(-1)
    assert same.all() if not sample else 0.2 < same.float().mean() < 0.95


def test_capacity_is_a_share_rounded_up():
    assert capacity_of(10, Moe(experts=4, topk=2, ffn_hidden=8, capacity_factor=1.3)) == 7  # 5 * 1.3 = 6.5
