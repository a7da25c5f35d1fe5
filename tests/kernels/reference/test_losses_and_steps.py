"""Cross entropy, AdamW and split fp32 numbers, against torch's own, loops over bits, and one rank against two."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from ridgeline.kernels.reference.adamw import adamw
from ridgeline.kernels.reference.cross_entropy import (
    cross_entropy,
    linear_cross_entropy,
    vocab_parallel_cross_entropy,
)
from ridgeline.kernels.reference.split_fp32 import split_fp32
from tests.pool import Pool


def wide(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(2, 12), st.integers(1, 5), st.integers(1, 9))
def test_losses_equal_torchs(tokens: int, vocab: int, hidden: int, chunk_tokens: int) -> None:
    """Whole logits and the fused projection in chunks of any size give torch's losses and gradients."""
    inputs, weight = wide(tokens, hidden), wide(vocab, hidden, seed=1)
    targets = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(2))
    expected = torch.nn.functional.cross_entropy(inputs @ weight.t(), targets, reduction="none")
    dloss = wide(tokens, seed=3).detach()
    wanted = torch.autograd.grad(expected, (inputs, weight), dloss)
    whole = cross_entropy(inputs @ weight.t(), targets)
    fused = linear_cross_entropy(inputs, weight, targets, chunk_tokens=chunk_tokens)
    for loss in (whole, fused):
        torch.testing.assert_close(loss, expected)
        for ours, theirs in zip(torch.autograd.grad(loss, (inputs, weight), dloss), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_half_precision_logits_lose_no_loss() -> None:
    """The loss of bf16 logits is fp32's of the same numbers."""
    logits, targets = wide(9, 30).detach().bfloat16(), torch.arange(9)
    expected = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    for loss in (
        cross_entropy(logits, targets),
        linear_cross_entropy(logits, torch.eye(30).bfloat16(), targets, chunk_tokens=4),
    ):
        torch.testing.assert_close(loss, expected)


def split_losses(tokens: int) -> list[list[list[float]]]:
    """On a rank: losses and gradients of a vocabulary of which it holds a part, by both ops."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    inputs, weight = wide(tokens, 5), wide(12, 5, seed=1)
    targets = torch.randint(12, (tokens,), generator=torch.Generator().manual_seed(2))
    dloss = wide(tokens, seed=3).detach()
    group = distributed.group.WORLD
    assert group is not None
    part = weight.detach().chunk(world_size)[rank].clone().requires_grad_()
    found = []
    loss = vocab_parallel_cross_entropy(inputs @ part.t(), targets, group=group)
    found += [loss, torch.autograd.grad(loss, part, dloss)[0]]
    loss = linear_cross_entropy(inputs, part, targets, chunk_tokens=3, group=group)
    found += [loss, *torch.autograd.grad(loss, (inputs, part), dloss)]
    return [x.detach().tolist() for x in found]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_split_vocabulary_is_the_whole_one(ranks: Pool, world_size: int) -> None:
    """Over two and three ranks losses and gradients are those of one, each rank's for its part of the vocabulary."""
    inputs, weight = wide(8, 5), wide(12, 5, seed=1)
    targets = torch.randint(12, (8,), generator=torch.Generator().manual_seed(2))
    loss = torch.nn.functional.cross_entropy(inputs @ weight.t(), targets, reduction="none")
    dinputs, dweight = torch.autograd.grad(loss, (inputs, weight), wide(8, seed=3).detach())
    for rank, found in enumerate(ranks.run(split_losses, world_size, 8)):
        mine = dweight.chunk(world_size)[rank]
        for ours, theirs in zip(found, (loss, mine, loss, dinputs, mine), strict=True):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs.detach())


@given(st.floats(1e-5, 0.5), st.floats(0, 0.99), st.floats(0, 0.999), st.sampled_from([0.0, 0.1]), st.integers(1, 6))
def test_steps_are_torchs(lr: float, beta1: float, beta2: float, weight_decay: float, steps: int) -> None:
    """After any number of steps the parameter is torch.optim.AdamW's."""
    theirs = wide(17)
    ours = theirs.detach().clone()
    optimizer = torch.optim.AdamW([theirs], lr=lr, betas=(beta1, beta2), eps=1e-8, weight_decay=weight_decay)
    mean, square = torch.zeros_like(ours), torch.zeros_like(ours)
    options: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": 1e-8, "weight_decay": weight_decay}
    for step in range(1, steps + 1):
        theirs.grad = wide(17, seed=step).detach()
        optimizer.step()
        adamw(ours, theirs.grad, mean, square, step=step, **options)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-9)


def test_bf16_states_cost_their_rounding_only() -> None:
    """States in bf16 are widened for the step: after one step from zero the parameter is as with fp32 states."""
    options: dict[str, Any] = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        param, grad = wide(50).detach().float(), wide(50, seed=1).detach().float()
        mean, square = torch.zeros(50, dtype=dtype), torch.zeros(50, dtype=dtype)
        adamw(param, grad, mean, square, **options)
        results.append((param, mean.float()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2**-8, atol=0)


def numbers(bits: list[int]) -> Tensor:
    """fp32 numbers of these bits."""
    return torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32).copy())


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_splitting_loses_no_bit(bits: list[int]) -> None:
    """Any fp32 numbers, infinities, denormals and NaN among them, come back bit for bit, as often as one likes."""
    split = split_fp32(numbers(bits))
    for _ in range(2):
        split.split()
        split.join()
    assert split.whole.view(torch.int32).tolist() == numbers(bits).view(torch.int32).tolist()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40))
def test_the_upper_halves_are_bf16(values: list[float]) -> None:
    """After the split the second half of the memory holds the numbers in bf16: torch's rounding, but for exact ties."""
    whole = torch.tensor(values)
    split = split_fp32(whole)
    split.split()
    assert split.upper.is_contiguous()
    tie = whole.view(torch.int32) & 0xFFFF == 0x8000
    assert torch.equal(split.upper[~tie], whole.bfloat16()[~tie])
    away = ((whole.view(torch.int32) >> 16) + 1).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(split.upper[tie], away[tie])


def test_the_buffer_costs_no_more_than_fp32() -> None:
    """Four bytes a number hold both the master and the weight."""
    split = split_fp32(torch.zeros(10))
    assert split.halves.untyped_storage().nbytes() == 40
    assert split.upper.untyped_storage().data_ptr() == split.whole.untyped_storage().data_ptr()
