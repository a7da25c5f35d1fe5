"""The pool of ranks that other tests stand on."""

import os
import re
import subprocess
import time

import psutil
import pytest

from tests.parallel.examples import job_of, moe_model
from tests.pool import Pool, RankError, open_pool


def who() -> tuple[int, int]:
    from torch import distributed

    return distributed.get_rank(), distributed.get_world_size()


def total(values: list[float]) -> float:
    import torch
    from torch import distributed

    mine = torch.tensor(values[distributed.get_rank()])
    distributed.all_reduce(mine)
    return mine.item()


def train_upstream() -> None:
    """A step of Megatron-core's own experts, whose dispatcher, positions and log of losses outlive it."""
    from tests.parallel.upstream import train

    model = moe_model(layers=2, experts=4)
    job = job_of(model, world_size=1, batch__gbs=2, batch__seq_len=16, precision__params="fp32")
    train(job, 1, {})


def threads() -> int:
    return psutil.Process().num_threads()


def fail_on(rank: int) -> None:
    from torch import distributed

    if distributed.get_rank() == rank:
        raise ValueError(f"no={rank}")
    distributed.barrier()


def die_on(rank: int) -> None:
    from torch import distributed

    if distributed.get_rank() == rank:
        print("last words", flush=True)
        os._exit(7)
    distributed.barrier()


def hang_on(rank: int) -> None:
    from torch import distributed

    if distributed.get_rank() == rank:
        time.sleep(1000)


def start_a_child_and_hang(rank: int) -> None:
    from torch import distributed

    if distributed.get_rank() == rank:
        child = subprocess.Popen(["sleep", "1000"])
        print(f"child={child.pid}.", flush=True)
        child.wait()


def start_a_child() -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


def descriptors(tp: int) -> int:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tp, create_gloo_process_groups=False)
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_knows_itself(ranks: Pool, world_size: int) -> None:
    """Results come back by rank, and no more ranks take part than were asked for."""
    assert ranks.run(who, world_size) == [(rank, world_size) for rank in range(world_size)]


def test_collectives_and_names(ranks: Pool) -> None:
    """Ranks talk to each other; a function may be given by name."""
    assert ranks.run(total, 2, [1.0, 2.0]) == [3.0, 3.0]
    assert ranks.run("os:getpid", 2)[0] != os.getpid()


def test_a_failure_names_the_rank_and_the_line(ranks: Pool) -> None:
    """A rank that raises fails its caller with the rank and the remote traceback, and the next job is sound."""
    with pytest.raises(RankError, match=r"(?s)fail_on on 2 ranks\n.*rank 1: Traceback.*ValueError: no=1"):
        ranks.run(fail_on, 2, 1)
    assert ranks.run(total, 2, [1.0, 2.0]) == [3.0, 3.0]


def test_a_dead_worker_is_replaced(ranks: Pool) -> None:
    """A rank that dies fails its test with its log, and only that one."""
    with pytest.raises(RankError, match=r"(?s)rank 1: died with exit code 7.*last words"):
        ranks.run(die_on, 2, 1)
    assert ranks.run(total, 2, [1.0, 2.0]) == [3.0, 3.0]


def test_a_hanging_worker_is_replaced(ranks: Pool) -> None:
    """A rank that hangs is ended at the timeout, and its stack says where it hung."""
    with pytest.raises(RankError, match=r"(?s)rank 1: gave no answer in 2 s.*in hang_on"):
        ranks.run(hang_on, 2, 1, timeout=2)
    assert ranks.run(total, 2, [1.0, 2.0]) == [3.0, 3.0]


def test_jobs_leave_no_descriptors(ranks: Pool) -> None:
    """Fifty jobs that build Megatron's process groups leave a worker as few open files as one job."""
    counts = [max(ranks.run(descriptors, 2, 2)) for _ in range(50)]
    assert max(counts[2:]) <= counts[1]


def ended(pid: int) -> bool:
    """Whether a process ends within seconds; one that only waits to be reaped has."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_nothing_is_left_running(ranks: Pool) -> None:
    """What a worker started ends with it, be it killed or closed."""
    with pytest.raises(RankError) as failure:
        ranks.run(start_a_child_and_hang, 2, 1, timeout=1)
    (child,) = re.findall(r"child=(\d+)\.", str(failure.value))
    with open_pool() as pool:
        (other,) = pool.run(start_a_child, 1)
    assert ended(int(child))
    assert ended(other)


def test_only_importable_functions(ranks: Pool) -> None:
    """A lambda cannot be sent, and the error says so."""
    with pytest.raises(ValueError, match="at the top of a module"):
        ranks.run(lambda: None, 1)


def test_a_job_leaves_no_threads(ranks: Pool) -> None:
    """Those of a process group poll for as long as anything holds the group; autograd's come with the first job."""
    counts = []
    for _ in range(2):
        ranks.run(train_upstream, 1)
        counts += ranks.run(threads, 1)
    assert counts[0] == counts[1]
