"""Attention to keys that come part by part is attention to all of them, and so are its gradients."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.layout import Layout
from ridgeline.kernels.reference.attention import attention
from ridgeline.kernels.reference.partial_attention import partial_attention, partial_attention_grad
from ridgeline.models.runtime.context.merge import merge
from ridgeline.models.runtime.context.ring import meeting
from ridgeline.parallel.context import context_pieces


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, list[torch.Tensor]]:
    """A ring, and queries, keys and values of a whole sequence in float64, some scores far from the others."""
    ring, part, groups, each, b = (draw(st.integers(1, 3)) for _ in range(5))
    s, d, v = 2 * ring * part, draw(st.integers(1, 5)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = (s, b, groups * each, d), (s, b, groups, d), (s, b, groups, v)
    spread = draw(st.sampled_from([1.0, 30.0]))
    return ring, [torch.randn(shape, generator=generator, dtype=torch.float64) * spread for shape in shapes]


def rows_of(rank: int, ring: int, s: int) -> torch.Tensor:
    pieces = context_pieces(Layout(cp=ring), rank, seq_len=s)
    return torch.cat([torch.arange(begin, end) for begin, end in pieces])


def merged(rank: int, ring: int, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Context and logarithms of sums of a rank's queries, over the keys of all ranks in the order of the ring."""
    query, key, value = tensors
    own = query[rows_of(rank, ring, len(query))]
    context, lse = torch.empty(0), torch.empty(0)
    for step in range(ring):
        origin = (rank - step) % ring
        rows = rows_of(origin, ring, len(query))
        queries, keys, mask = meeting(rank, origin, size=len(own))
        inputs = own[queries], key[rows][keys], value[rows][keys]
        part, part_lse = partial_attention(*inputs, scale=0.7, mask=mask)
        if step:
            merge(context[queries], lse[..., queries], part, part_lse)
        else:
            context, lse = part, part_lse
    return context, lse


@settings(max_examples=25)
@given(calls())
def test_merged_parts_are_the_whole(call: tuple[int, list[torch.Tensor]]) -> None:
    """Each query's context and sum equal a softmax over all keys before it, in numpy."""
    ring, tensors = call
    query, key, value = (x.numpy() for x in tensors)
    for rank in range(ring):
        context, lse = merged(rank, ring, tensors)
        for row, position in enumerate(rows_of(rank, ring, len(query)).tolist()):
            for sample, head in np.ndindex(query.shape[1:3]):
                group = head * key.shape[2] // query.shape[2]
                scores = 0.7 * key[: position + 1, sample, group] @ query[position, sample, head]
                total = scores.max() + math.log(np.exp(scores - scores.max()).sum())
                expected = np.exp(scores - total) @ value[: position + 1, sample, group]
                assert np.isclose(lse[sample, head, row], total, rtol=1e-12, atol=1e-12)
                np.testing.assert_allclose(context[row, sample, head].numpy(), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=25)
@given(calls())
def test_gradients_of_parts_add_up(call: tuple[int, list[torch.Tensor]]) -> None:
    """Summed over every meeting they are what autograd makes of torch's attention over the whole sequence."""
    ring, tensors = call
    leaves = [x.clone().requires_grad_() for x in tensors]
    whole = attention(*leaves, scale=0.7)
    grad = torch.linspace(-1, 1, whole.numel(), dtype=whole.dtype).view(whole.shape)
    whole.backward(grad)
    sums = [torch.zeros_like(x) for x in tensors]
    for rank in range(ring):
        own = rows_of(rank, ring, len(whole))
        context, lse = merged(rank, ring, tensors)
        for origin in range(ring):
            rows = rows_of(origin, ring, len(whole))
            queries, keys, mask = meeting(rank, origin, size=len(own))
            inputs = tensors[0][own][queries], tensors[1][rows][keys], tensors[2][rows][keys]
            of_all = context[queries], lse[..., queries]
            parts = partial_attention_grad(grad[own][queries], *inputs, *of_all, scale=0.7, mask=mask)
            for total, part, place in zip(sums, parts, (own[queries], rows[keys], rows[keys]), strict=True):
                total.index_add_(0, place, part)
    for ours, leaf in zip(sums, leaves, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-9, atol=1e-9)
