"""Microbatches from any step on."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import Dataset

from ridgeline.apps.runtime.data.loader import microbatches
from ridgeline.apps.runtime.data.packing import Microbatch
from ridgeline.apps.runtime.data.sampling import Slice
from ridgeline.core.errors import DataError

PART = Slice(mbs=2, gbs=8, dp_rank=1, dp=2)


class Numbers(Dataset):
    """Sample i is the tokens i, i + 1, ...; remembers what was read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append(index)
        tokens = torch.arange(index, index + 4)
        return {"tokens": tokens, "labels": tokens + 1, "loss_mask": torch.ones(4), "dataset_id": torch.tensor(0)}


def read(dataset: Dataset, consumed: int, *, workers: int = 0) -> Iterator[Microbatch]:
    return microbatches(
        dataset, PART, consumed_samples=consumed, stop_samples=32, packing="eod_reset", eod=12, workers=workers
    )


def test_a_resumed_run_reads_the_rest_and_nothing_before() -> None:
    """From step 2 on: the rest of the uninterrupted run; earlier samples and the global generator stay untouched."""
    whole, rest = Numbers(32), Numbers(32)
    expected = [batch.tokens.tolist() for batch in read(whole, 0)]
    state = torch.get_rng_state()
    resumed = [batch.tokens.tolist() for batch in read(rest, 16)]
    assert torch.equal(torch.get_rng_state(), state)
    assert resumed == expected[4:]
    assert len(expected) == 8
    assert rest.read == [18, 19, 22, 23, 26, 27, 30, 31]


def test_workers_give_the_same_in_the_same_order() -> None:
    """Reading ahead changes nothing."""
    assert [b.tokens.tolist() for b in read(Numbers(32), 0, workers=2)] == [
        b.tokens.tolist() for b in read(Numbers(32), 0)
    ]


def test_a_microbatch_is_assembled_for_packing() -> None:
    """Boundaries fall behind the end of document 12, which the third microbatch holds twice."""
    batch = list(read(Numbers(32), 0))[2]
    assert batch.tokens.tolist() == [[10, 11, 12, 13], [11, 12, 13, 14]]
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6, 8]


def test_a_dataset_that_ends_too_early_is_refused_at_once() -> None:
    """Before any sample is read, with both numbers."""
    short = Numbers(31)
    with pytest.raises(DataError, match="the dataset holds 31 samples, but the run takes 32"):
        read(short, 0)
    assert short.read == []
