"""Processes of the virtual NPU: each imports torch_npu over the stand-ins and runs what it is sent.

An import of torch_npu changes torch for good, so whoever wants to stay as he is gives it a process of its own.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import attrs

from ridgeline.kernels.npu.virtual.load import AUTOLOAD
from ridgeline.kernels.npu.virtual.stubs import check_virtual_npu

END_SECONDS = 5.0


class RemoteError(RuntimeError):
    """A function failed in another process, whose traceback this is; or the process died or gave no answer."""


@attrs.frozen(kw_only=True)
class VirtualProcess:
    """One process and the end of the pipe that leads to it."""

    process: "subprocess.Popen[bytes]"
    pipe: Connection

    def call(self, function: str, *args: Any, file: str | None = None, timeout: float = 300.0, **kwargs: Any) -> Any:
        """Run an importable function there and give what it returned.

        Args:
            function: ``module:name``.
            args: Anything pickle takes, as is what the function returns; so are ``kwargs``.
            file: The module's file, if no import path leads to it.
            timeout: Seconds.

        Raises:
            RemoteError: It raised, or the process died or is late.
        """
        self.send(function, *args, file=file, **kwargs)
        return self.receive(timeout=timeout)

    def send(self, function: str, *args: Any, file: str | None = None, **kwargs: Any) -> None:
        """Begin a call; `receive` ends it."""
        self.pipe.send_bytes(pickle.dumps((function, file, args, kwargs)))

    def receive(self, *, timeout: float = 300.0) -> Any:
        """What the call returned that was sent before."""
        try:
            if not self.pipe.poll(timeout):
                raise RemoteError(f"the virtual NPU gave no answer in {timeout} s")
            good, value = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise RemoteError(f"the virtual NPU died with exit code {self.process.wait()}") from None
        if not good:
            raise RemoteError(value)
        return value


@contextlib.contextmanager
def virtual_processes(count: int = 1) -> Iterator[list[VirtualProcess]]:
    """Start processes that end with the context.

    Raises:
        LoweringError: torch_npu or a C compiler is missing.
        RemoteError: A process did not start.
    """
    check_virtual_npu()
    started: list[VirtualProcess] = []
    try:
        for _ in range(count):
            started.append(_start())
        for one in started:
            one.receive()
        yield started
    finally:
        for one in started:
            one.pipe.close()
        for one in started:
            try:
                one.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()


def call_ranks(processes: Sequence[VirtualProcess], function: str, *args: Any, store: Path, **kwargs: Any) -> list[Any]:
    """Run a function on every process as a rank of one gloo world, and give what each returned.

    Args:
        processes: Rank 0 first.
        function: As `VirtualProcess.call`.
        store: A file that does not exist yet, through which the ranks meet.
        args: As `VirtualProcess.call`; so are ``kwargs``.
    """
    for rank, one in enumerate(processes):
        world = (rank, len(processes), str(store))
        one.send("ridgeline.kernels.npu.virtual.serve:as_rank", *world, function, args, **kwargs)
    return [one.receive() for one in processes]


def _start() -> VirtualProcess:
    here, there = Pipe()
    environment = {
        **os.environ,
        AUTOLOAD: "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONWARNINGS": "ignore",  # of what torch_npu and others import
    }
    command = [sys.executable, "-m", "ridgeline.kernels.npu.virtual.serve", str(there.fileno())]
    process = subprocess.Popen(command, pass_fds=(there.fileno(),), env=environment, stdin=subprocess.DEVNULL)
    there.close()
    return VirtualProcess(process=process, pipe=here)
