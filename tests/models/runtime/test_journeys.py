"""What stays under way comes as if waited for, and what runs between leaving and arriving runs meanwhile."""

import numpy as np
import pytest
import torch
from torch import distributed

from ridgeline.models.runtime.journeys import Journey, begin, exchange, finish, gathering, scattering

KINDS = ("exchange", "gather", "scatter")
COUNTS = ((1, 3), (2, 0))
"""Rows that a rank (first) sends to another (second)."""


class Watched(torch.autograd.Function):
    """Twice its input; tells, forward and backward, whether a journey is under way."""

    @staticmethod
    def forward(ctx, tensor, journey: Journey, told: list):
        ctx.journey, ctx.told = journey, told
        told.append(bool(journey.under_way))
        return tensor * 2.0

    @staticmethod
    def backward(ctx, *gradients):
        ctx.told.append(bool(ctx.journey.under_way))
        return gradients[0] * 2.0, None, None


def travelled(kind: str) -> dict:
    """A tensor's way with something computed beside it: what came, the gradient that came back, what was under way."""
    rank, group = distributed.get_rank(), distributed.group.WORLD
    sent, received = COUNTS[rank], tuple(counts[rank] for counts in COUNTS)
    journey = {
        "exchange": lambda: exchange(group, received=received, sent=sent),
        "gather": lambda: gathering(group),
        "scatter": lambda: scattering(group),
    }[kind]()
    rows = rows_of(kind)[rank]
    tensor = torch.tensor(rows, requires_grad=True)
    told = []
    leaving = begin(tensor * 1.0, journey)
    beside = Watched.apply(tensor.sum(), journey, told)
    came = finish(leaving, journey)
    weights = torch.arange(float(came.numel())).view(came.shape) * (rank + 1)
    ((came * weights).sum() + beside).backward()
    return {"came": came.detach().numpy(), "gradient": tensor.grad.numpy(), "told": told, "left": journey.under_way}


def rows_of(kind: str) -> list[np.ndarray]:
    sizes = [sum(counts) for counts in COUNTS] if kind == "exchange" else [4, 4]
    return [100.0 * rank + np.arange(3.0 * size).reshape(size, 3) for rank, size in enumerate(sizes)]


def by_hand(kind: str, parts: list[np.ndarray], *, back: bool = False) -> list[np.ndarray]:
    """What each rank gets of all ranks' rows; gradients go the other way."""
    if kind == "exchange":
        counts = [list(row) for row in (zip(*COUNTS, strict=True) if back else COUNTS)]
        cut = [np.split(part, np.cumsum(row)[:-1]) for part, row in zip(parts, counts, strict=True)]
        return [np.concatenate([pieces[rank] for pieces in cut]) for rank in range(2)]
    if (kind == "gather") != back:
        return [np.concatenate(parts)] * 2
    return np.split(sum(parts), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_travel_while_others_compute(ranks, kind):
    results = ranks.run(travelled, 2, kind)
    came = by_hand(kind, rows_of(kind))
    weights = [np.arange(float(part.size)).reshape(part.shape) * (rank + 1) for rank, part in enumerate(came)]
    gradients = by_hand(kind, weights, back=True)
    for result, expected, gradient in zip(results, came, gradients, strict=True):
        np.testing.assert_array_equal(result["came"], expected)
        np.testing.assert_array_equal(result["gradient"], gradient + 2.0)
        assert result["told"] == [True, True], "under way in the forward and in the backward"
        assert not result["left"]
