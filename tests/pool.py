"""Ranks for tests: a few gloo workers, started once per test run, that run importable functions of plain data.

The workers are forked from one process that has imported torch and Megatron-core (multiprocessing's forkserver): four
of them cost the imports of one, and one that died or hung is replaced in an instant. Jobs share nothing but their
processes: each has its own names in the store, and its process groups are destroyed behind it.
"""

import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

import attrs

from ridgeline.kernels.npu.virtual.serve import find

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 4
START_SECONDS = 300.0
GRACE_SECONDS = 5.0
"""How long the other ranks may take to answer once one has failed."""

PRELOADED = (
    "torch",
    "megatron.core.models.gpt",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.distributed",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.core.dist_checkpointing",
    "megatron.core.datasets.gpt_dataset",
)


class RankError(AssertionError):
    """A function failed, died or hung on a rank."""


@attrs.frozen(kw_only=True)
class Worker:
    """One long-lived process and the end of the pipe that leads to it."""

    process: Any
    pipe: Connection
    log: Path


@attrs.frozen(kw_only=True)
class Pool:
    """The workers, by rank; started when first needed."""

    store: Any
    folder: Path
    workers: dict[int, Worker] = attrs.field(factory=dict)
    jobs: list[str] = attrs.field(factory=list)

    def start(self, world_size: int = LIMIT) -> None:
        """Have workers for the first ranks alive and their imports done."""
        started = [rank for rank in range(world_size) if not self._is_alive(rank)]
        for rank in started:
            self.workers[rank] = _start(rank, self.store.port, self.folder)
        for rank in started:
            worker = self.workers[rank]
            try:
                ready = worker.pipe.poll(START_SECONDS) and worker.pipe.recv_bytes()
            except EOFError:
                ready = False
            if not ready:
                raise RankError(f"rank {rank} did not start; see its error above, or its log:\n{_tail(worker.log, 0)}")

    def run(self, function: Callable[..., Any] | str, world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
        """Run a function on every rank of a new gloo world, and give what each returned, by rank.

        Args:
            function: A function at the top of a module, or ``"module:function"``; torch.distributed is initialised.
            world_size: 1 .. 4.
            args: Anything pickle takes; give plain data. The same goes for what the function returns.
            timeout: Seconds until ranks that have not answered are ended.

        Raises:
            RankError: A rank raised (its traceback), died (exit code and log) or hung (stack and log).
        """
        if not 1 <= world_size <= LIMIT:
            raise ValueError(f"world_size={world_size}: must be 1 .. {LIMIT}")
        name, path = _address(function)
        self.jobs.append(name)
        self.start(world_size)
        ranks = range(world_size)
        began = {rank: self.workers[rank].log.stat().st_size for rank in ranks}
        for rank in ranks:
            job = (name, path, f"job{len(self.jobs)}", rank, world_size, timeout, args)
            self.workers[rank].pipe.send_bytes(pickle.dumps(job))
        answers, failures = self._answers(ranks, timeout)
        for rank in [rank for rank in ranks if rank not in answers]:
            self._end(rank)
            failures[rank] = f"{failures[rank]}\n{_tail(self.workers.pop(rank).log, began[rank])}"
        if failures:
            raise RankError(
                f"{name} on {world_size} ranks\n" + "\n".join(f"rank {r}: {t}" for r, t in failures.items())
            )
        return [answers[rank] for rank in ranks]

    def close(self) -> None:
        """End every worker: let each leave its loop, so that what it started ends too, and kill one that does not."""
        for worker in self.workers.values():
            worker.pipe.close()
        for rank, worker in self.workers.items():
            worker.process.join(GRACE_SECONDS)
            self._end(rank)
        self.workers.clear()

    def _is_alive(self, rank: int) -> bool:
        return rank in self.workers and self.workers[rank].process.is_alive()

    def _answers(self, ranks: Sequence[int], timeout: float) -> tuple[dict[int, Any], dict[int, str]]:
        """What came back from each rank that lives, and why it failed of each that failed, in order of time."""
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        waiting = {self.workers[rank].pipe: rank for rank in ranks}
        while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for pipe in ready:
                rank = waiting.pop(pipe)  # pyright: ignore[reportArgumentType]  wait gives back what it was given
                try:
                    good, value = pickle.loads(pipe.recv_bytes())  # pyright: ignore[reportAttributeAccessIssue]
                except (EOFError, ConnectionError):
                    self.workers[rank].process.join(GRACE_SECONDS)
                    failures[rank] = f"died with exit code {self.workers[rank].process.exitcode}"
                else:
                    answers[rank] = value
                    if not good:
                        failures[rank] = value
            if failures:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        cause = "others failed and it gave no answer since" if failures else f"gave no answer in {timeout} s"
        return answers, {**failures, **dict.fromkeys(waiting.values(), cause)}

    def _end(self, rank: int) -> None:
        """End a worker and all that it started; one that hangs writes its stack to its log first."""
        process = self.workers[rank].process
        if process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
            process.join(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        self.workers[rank].pipe.close()


@contextlib.contextmanager
def open_pool() -> Iterator[Pool]:
    """A pool whose workers end with the context."""
    from torch.distributed import TCPStore  # the only need of torch in the test process, and only if ranks are used

    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        pool = Pool(store=store, folder=Path(folder))
        try:
            yield pool
        finally:
            pool.close()


def _start(rank: int, port: int, folder: Path) -> Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    here, there = context.Pipe()
    log = folder / f"rank{rank}.log"
    log.touch()
    process = context.Process(target=_serve, args=(there, port, str(log)))  # not a daemon: those may start no writers
    with mock.patch.dict(os.environ, PYTHONWARNINGS="ignore"):  # of what others import, which would fill the terminal
        process.start()
    there.close()
    return Worker(process=process, pipe=here, log=log)


def _tail(log: Path, begin: int, size: int = 8000) -> str:
    """The end of what a worker wrote since ``begin``."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - size))
        return f"--- its log ---\n{file.read().decode(errors='replace')}"


def _address(function: Callable[..., Any] | str) -> tuple[str, str | None]:
    """Name a function so that a worker finds it: ``module:function``, and the file of a module that is a test's."""
    if isinstance(function, str):
        return function, None
    if "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__}: a worker can only import a function at the top of a module")
    path = Path(function.__code__.co_filename).resolve()
    return f"{function.__module__}:{function.__qualname__}", str(path) if ROOT / "tests" in path.parents else None


# Below runs in the workers.


def _serve(pipe: Connection, port: int, log: str) -> None:
    """Run jobs until the pipe closes."""
    os.setsid()  # its children are its group, and a Ctrl-C is the parent's alone
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.register(signal.SIGUSR1)

    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # imports stay: looking through them after each job would take a third of a second
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)
    pipe.send_bytes(b"ready")
    while True:
        try:
            job = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(_run(store, *job))


def _run(
    store: Any, name: str, path: str | None, prefix: str, rank: int, world_size: int, timeout: float, args: Any
) -> bytes:
    import torch

    try:
        torch.manual_seed(0)
        torch.distributed.init_process_group(
            "gloo",
            store=torch.distributed.PrefixStore(prefix, store),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        return pickle.dumps((True, find(name, path)(*args)))
    except BaseException:
        return pickle.dumps((False, traceback.format_exc()))
    finally:
        _clean()


def _clean() -> None:
    from megatron.core import parallel_state
    from torch import distributed

    parallel_state.destroy_model_parallel()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()  # models stand in cycles, and what they hold of a group keeps its threads running
