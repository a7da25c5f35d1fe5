"""Several ranks on this machine, started, watched and stopped together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ridgeline.apps.runtime.stopping import SIGNALS

GRACE_SECONDS = 5.0
"""How long the others may take to follow a rank that failed."""


def run_local(arguments: Sequence[str], *, processes: int) -> int:
    """Run a command of Ridgeline as ranks on this machine; its exit code."""
    return run_together([sys.executable, "-m", "ridgeline", *arguments], processes=processes)


def run_together(command: Sequence[str], *, processes: int, grace_seconds: float = GRACE_SECONDS) -> int:
    """Run a command in so many processes with torchrun's variables; the exit code of the first that failed, or 0.

    A signal is passed on, and the processes then end as they would alone. If one fails, the others are stopped.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    ranks = [
        # In a session of its own: Ctrl-C in a terminal reaches it once, through us.
        subprocess.Popen(command, env=_environment(shared, rank), start_new_session=True)
        for rank in range(processes)
    ]
    try:
        with _passed_on(ranks):
            return _watch(ranks, grace_seconds)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()


def _watch(ranks: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = {index: code for index, code in enumerate(codes) if code}
        if failed:
            # One that a signal killed is the cause: others only noticed, and may all have ended since the last look.
            return _stop(ranks, min(failed, key=lambda index: failed[index] > 0), grace_seconds)
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


def _stop(ranks: Sequence[subprocess.Popen[bytes]], failed: int, grace_seconds: float) -> int:
    """Let the others end by themselves for a while, then end them; the exit code of all."""
    code = ranks[failed].returncode
    if code < 0:
        name = signal.Signals(-code).name
        reason = " (was the machine out of memory?)" if name == "SIGKILL" else ""
        sys.stderr.write(
            f"rank {failed} was killed by {name}{reason}; what was saved is whole, start again to resume\n"
        )
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    return code if code > 0 else 1


@contextmanager
def _passed_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to the ranks, as long as the context lasts."""

    def pass_on(number: int, frame: object) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(shared: Mapping[str, str], rank: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
