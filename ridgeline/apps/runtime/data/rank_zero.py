"""Do something once, on rank 0, while the other ranks wait; succeed or fail together."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from ridgeline.core.errors import DataError, RidgelineError

T = TypeVar("T")

BEAT_SECONDS = 5.0


def on_rank_zero(
    work: Callable[[], T], *, group: dist.ProcessGroup | None = None, beat_seconds: float = BEAT_SECONDS
) -> T:
    """Run ``work`` on the first rank of a group and give its result, or its error, to all.

    The work may take hours: a sign of life every ``beat_seconds`` keeps the wait below any timeout of the group.

    Args:
        work: What to do; its result is plain data.
        group: A group that moves objects through host memory (gloo); None takes the default one. Where no group is
            initialised this process is alone.
        beat_seconds: Time between two signs of life.
    """
    if not dist.is_initialized():
        return work()
    if dist.get_rank(group) != 0:
        return _follow(group)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(done, group, beat_seconds))
    beat.start()
    outcome: tuple[str, object] = ("failed", RuntimeError("rank 0 stopped while the others waited for it"))
    try:
        result = work()
        outcome = ("done", result)
    except Exception as error:
        outcome = (
            "failed",
            error if isinstance(error, RidgelineError) else RuntimeError(f"rank 0: {type(error).__name__}: {error}"),
        )
        raise
    finally:
        done.set()
        beat.join()
        _broadcast(outcome, group)
    return result


def check_visible(
    path: Path, *, what: str, group: dist.ProcessGroup | None = None, patience_seconds: float = 30.0
) -> None:
    """Refuse, on all ranks, a path written by rank 0 that some rank cannot see.

    Args:
        path: File that rank 0 has written.
        what: Its field in the job, for the message.
        group: As for ``on_rank_zero``.
        patience_seconds: How long a network file system may take to show a new file.

    Raises:
        DataError: The disks are not shared; the ranks that see nothing are named.
    """
    if not dist.is_initialized():
        return
    deadline = time.monotonic() + patience_seconds
    while not (visible := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    seen: list[bool | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(seen, visible, group=group)
    blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
    if blind:
        shown = ", ".join(blind[:8]) + (", ..." if len(blind) > 8 else "")
        raise DataError(
            f"{what}={str(path.parent)!r}: written by rank 0 but not visible to ranks {shown}; "
            "use a folder on shared storage"
        )


def _follow(group: dist.ProcessGroup | None) -> Any:
    state, value = "wait", None
    while state == "wait":
        state, value = _broadcast(None, group)
    if isinstance(value, BaseException) and state == "failed":
        raise value
    return value


def _beat(done: threading.Event, group: dist.ProcessGroup | None, seconds: float) -> None:
    while not done.wait(seconds):
        _broadcast(("wait", None), group)


def _broadcast(outcome: tuple[str, object] | None, group: dist.ProcessGroup | None) -> tuple[str, object]:
    box = [outcome]
    dist.broadcast_object_list(box, group=group, group_src=0)
    assert box[0] is not None
    return box[0]
