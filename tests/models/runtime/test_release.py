"""A rank that was built and trained leaves nothing behind."""

import gc
import os

import pytest

from tests.parity.on_ranks import train
from tests.parity.small import MODELS, job_of


def threads() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather"])
def test_threads_of_its_groups_end(ranks, dispatcher):
    """Experts' dispatchers keep a graph that would keep the model, its groups and their threads."""
    job = job_of(MODELS["moe"], world_size=2, layout__ep=2, comm__moe_dispatcher=dispatcher)
    ranks.run(train, 2, job)
    before = ranks.run(threads, 2)

    ranks.run(train, 2, job)

    assert ranks.run(threads, 2) == before
