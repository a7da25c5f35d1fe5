"""Attention against a loop over positions, and its gradients against transformers' and against differences."""

import math
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kernels.reference.attention import attention


@attrs.frozen
class Case:
    """A call of attention: sizes as the legend has them, and what a query may see."""

    s: int
    t: int
    b: int
    g: int
    n: int
    d: int
    v: int
    window: int | None = None
    edges: tuple[int, ...] | None = None

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = (self.s, self.b, self.n, self.d), (self.t, self.b, self.g, self.d), (self.t, self.b, self.g, self.v)
        query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
        return query, key, value

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        cu_seqlens = None if self.edges is None else torch.tensor(self.edges, dtype=torch.int32)
        return attention(*inputs, scale=self.d**-0.5, window=self.window, cu_seqlens=cu_seqlens)

    def sees(self, sample: int, query: int, key: int) -> bool:
        """Whether a query (counted among the queries) may see a key."""
        distance = query + self.t - self.s - key
        if distance < 0 or (self.window is not None and distance >= self.window):
            return False
        first, last = sorted((sample * self.s + query, sample * self.s + key))
        return self.edges is None or not any(first < edge <= last for edge in self.edges)


def by_loops(case: Case) -> np.ndarray:
    """The context in float64, one query and head at a time."""
    query, key, value = (x.double().numpy() for x in case.inputs())
    out = np.zeros((case.s, case.b, case.n, case.v))
    for i in range(case.s):
        for sample in range(case.b):
            seen = [j for j in range(case.t) if case.sees(sample, i, j)]
            for head in range(case.n):
                group = head // (case.n // case.g)
                scores = np.array([query[i, sample, head] @ key[j, sample, group] for j in seen]) / math.sqrt(case.d)
                weights = np.exp(scores - scores.max())
                out[i, sample, head] = weights / weights.sum() @ value[seen, sample, group]
    return out


@st.composite
def cases(draw: Any) -> Case:
    """Small calls of every kind: full, windowed, from a cache, of packed documents."""
    s, b, g = draw(st.integers(1, 9)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    d, v = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([2, 8]))
    packed = draw(st.booleans())
    inner = draw(st.sets(st.integers(1, b * s), max_size=4)) if packed else set()
    return Case(
        s=s,
        t=s if packed else s + draw(st.integers(0, 5)),
        b=b,
        g=g,
        n=g * draw(st.integers(1, 3)),
        d=d,
        v=v,
        window=draw(st.none() | st.integers(1, 12)),
        edges=(0, *sorted(inner | {b * s})) if packed else None,
    )


@settings(max_examples=60, deadline=None)
@given(cases())
def test_it_is_the_formula(case: Case) -> None:
    """Every query gets the softmax-weighted mean of exactly the values it may see."""
    np.testing.assert_allclose(case.run(*case.inputs()).numpy(), by_loops(case), rtol=1e-5, atol=2e-6)


KINDS = {
    "full": Case(s=12, t=12, b=2, g=2, n=6, d=8, v=8),
    "window": Case(s=12, t=12, b=2, g=2, n=6, d=8, v=8, window=5),
    "cache": Case(s=4, t=12, b=2, g=2, n=6, d=8, v=8),
    "one head a group": Case(s=12, t=12, b=2, g=3, n=3, d=8, v=8),
    "packed": Case(s=12, t=12, b=2, g=2, n=6, d=8, v=8, edges=(0, 5, 12, 20, 24)),
    "packed window": Case(s=12, t=12, b=2, g=2, n=6, d=8, v=8, window=3, edges=(0, 5, 12, 20, 24)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_equal_transformers(kind: str) -> None:
    """Under a mask that says the same, Llama's eager attention gives the same output and gradients, in fp32."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    case = KINDS[kind]
    ours = [x.requires_grad_() for x in case.inputs()]
    theirs = [x.requires_grad_() for x in case.inputs()]
    hidden = [
        [[[not case.sees(b, i, j) for j in range(case.t)] for i in range(case.s)]] for b in range(case.b)
    ]  # (b, 1, s, t)
    mask = torch.zeros(case.b, 1, case.s, case.t).masked_fill(torch.tensor(hidden), float("-inf"))

    class Module(torch.nn.Module):
        num_key_value_groups = case.n // case.g

    query, key, value = (x.permute(1, 2, 0, 3) for x in theirs)
    context_bsnd, _ = llama.eager_attention_forward(Module(), query, key, value, mask, scaling=case.d**-0.5)
    out, expected = case.run(*ours), context_bsnd.transpose(0, 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(dy)
    expected.backward(dy)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind: str) -> None:
    """In float64 every gradient is the limit of differences."""
    case = attrs.evolve(KINDS[kind], b=1, edges=(0, 5, 12) if KINDS[kind].edges else None)
    assert torch.autograd.gradcheck(case.run, [x.requires_grad_() for x in case.inputs(torch.float64)], fast_mode=True)


def test_no_gradient_crosses_a_boundary() -> None:
    """A document's output sends exactly nothing to another document's keys and values."""
    case = KINDS["packed"]
    query, key, value = (x.requires_grad_() for x in case.inputs())
    case.run(query, key, value)[5:, 0].sum().backward()  # the second document of the first sample
    for x in (query, key, value):
        assert x.grad is not None
        assert x.grad[:5, 0].eq(0).all()
        assert x.grad[:, 1].eq(0).all()
        assert x.grad[5:, 0].ne(0).any()


def test_a_sample_edge_ends_a_document() -> None:
    """Documents told without the edge between two samples are the same as with it."""
    case = KINDS["packed"]
    without = attrs.evolve(case, edges=(0, 5, 20, 24))
    assert torch.equal(without.run(*case.inputs()), case.run(*case.inputs()))


def test_half_precision_is_near() -> None:
    """bf16 inputs give the exact output to bf16's precision, since sums and softmax are wider."""
    case = Case(s=64, t=64, b=1, g=2, n=4, d=32, v=32)
    inputs = case.inputs(torch.bfloat16)
    exact = case.run(*(x.double() for x in inputs))
    error = (case.run(*inputs).double() - exact).norm() / exact.norm()
    assert error < 2**-8
