"""What fails on one rank fails on all, with one sentence, and none is left waiting for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from ridgeline.checkpoint.io.folders import disk_sentence
from ridgeline.core.errors import CheckpointError

T = TypeVar("T")


def together(action: Callable[[], T], target: Path) -> T:
    """Do something on every rank; if it fails on any, raise everywhere what the first that failed says.

    Args:
        action: Without communication, lest ranks wait for one that failed.
        target: The folder it is about.

    Raises:
        CheckpointError: It failed somewhere; unless it did everywhere, the sentence begins with the rank.
    """
    result, cause = None, None
    try:
        result = action()
    except Exception as error:
        cause = error
    sentences: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(sentences, None if cause is None else _sentence(cause, target))
    failed = [(rank, sentence) for rank, sentence in enumerate(sentences) if sentence is not None]
    if failed:
        rank, sentence = failed[0]
        raise CheckpointError(sentence if len(failed) == len(sentences) else f"rank {rank}: {sentence}") from cause
    return result  # pyright: ignore[reportReturnType]  set unless the action failed


def on_first(action: Callable[[], None], target: Path) -> None:
    """Do something on rank 0; if it fails there, raise everywhere."""
    together(action if distributed.get_rank() == 0 else lambda: None, target)


def everywhere(condition: bool) -> bool:
    """Whether something holds on every rank."""
    answers: list[bool] = [False] * distributed.get_world_size()
    distributed.all_gather_object(answers, condition)
    return all(answers)


def gathered(value: Any) -> list[Any]:
    """On rank 0 the value of every rank, by rank; elsewhere nothing."""
    values = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(value, values)
    return values or []


def _sentence(error: Exception, target: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError):
        return disk_sentence(error, target)
    return f"checkpoint={target}: {type(error).__name__}: {error}"
