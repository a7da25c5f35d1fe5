"""Collectives of unequal parts over gloo, judged by concatenation and sum."""

import pytest
import torch
from torch import distributed

from ridgeline.kernels.device.uneven import all_gather, reduce_scatter
from tests.pool import Pool

LENGTHS = [[3, 0, 5], [2, 2, 2], [0, 0, 0], [0, 7, 1]]


def part_of(rank: int, lengths: list[int]) -> torch.Tensor:
    return torch.randn(lengths[rank], 4, generator=torch.Generator().manual_seed(rank))


def whole_of(rank: int, lengths: list[int]) -> torch.Tensor:
    return torch.randn(sum(lengths), 4, generator=torch.Generator().manual_seed(10 + rank))


def gathered(lengths: list[int]) -> list[list[list[float]]]:
    outputs = [torch.full((length, 4), torch.nan) for length in lengths]
    assert distributed.group.WORLD is not None
    all_gather(outputs, part_of(distributed.get_rank(), lengths), group=distributed.group.WORLD)
    return [output.tolist() for output in outputs]


def scattered(lengths: list[int]) -> list[list[float]]:
    rank = distributed.get_rank()
    output = torch.full((lengths[rank], 4), torch.nan)
    assert distributed.group.WORLD is not None
    reduce_scatter(output, whole_of(rank, lengths).split(lengths), group=distributed.group.WORLD)
    return output.tolist()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_rank_gathers_all_parts(ranks: Pool, lengths: list[int]) -> None:
    """Also where a rank has none."""
    expected = [part_of(rank, lengths).tolist() for rank in range(3)]
    assert ranks.run(gathered, 3, lengths) == [expected] * 3


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_rank_has_the_sum_of_its_part(ranks: Pool, lengths: list[int]) -> None:
    """Up to the rounding of sums, whose order is the library's."""
    total = torch.stack([whole_of(rank, lengths) for rank in range(3)]).sum(0)
    for mine, part in zip(ranks.run(scattered, 3, lengths), total.split(lengths), strict=True):
        torch.testing.assert_close(torch.tensor(mine).reshape(part.shape), part)
