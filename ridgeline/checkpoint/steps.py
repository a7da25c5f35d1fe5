"""The folders of a run's checkpoints: their names, and which of them to keep.

step_0000100         complete: it got this name when it was
latest               text: the name of the newest one
.tmp-step_0000200    being written; a leftover when nobody writes
.old-step_0000100    replaced by another save of its step, until that one stands
.del-step_0000050    being removed
"""

import re
from collections.abc import Collection

POINTER = "latest"
WRITING, REPLACED, REMOVED = ".tmp-", ".old-", ".del-"

_STEP = re.compile(r"step_(\d{7,})")


def step_name(step: int) -> str:
    """The name of a step's folder.

    Example:
        >>> step_name(100)
        'step_0000100'
    """
    return f"step_{step:07d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name tells; None for other names.

    Example:
        >>> step_of("step_0000100"), step_of(".tmp-step_0000100")
        (100, None)
    """
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def expired(steps: Collection[int], *, keep_last: int | None, newest: int) -> tuple[int, ...]:
    """Steps to remove so that ``keep_last`` remain, the one just saved among them.

    Example:
        >>> expired((10, 20, 30, 40), keep_last=2, newest=40)
        (10, 20)
        >>> expired((10, 20, 30), keep_last=2, newest=10)
        (20,)
    """
    if keep_last is None:
        return ()
    others = sorted(step for step in steps if step != newest)
    return tuple(others[: max(0, len(others) - (keep_last - 1))])
