"""What to tell a person about an error: a message with the way out, and the exit code."""

import errno
import os
import sys
import traceback

from ridgeline.core.errors import LoweringError, RidgelineError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
DEBUG = "RIDGELINE_DEBUG"
"""Variable that asks for tracebacks."""


def report(error: BaseException, *, source: str = "", silent: bool = False) -> int:
    """Tell a person about an error, on stderr; the exit code.

    Args:
        error: What went wrong.
        source: Said before each line.
        silent: Only the exit code, since another process tells.
    """
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    message, code = explain(error)
    for line in message.splitlines() if not silent else ():
        sys.stderr.write(f"{source}{type(error).__name__}: {line}\n")
    sys.stderr.flush()
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """The message and the exit code of an error.

    Example:
        >>> explain(OSError(28, "No space left on device", "/data/x"))
        ('disk full while writing /data/x; free some space, or set run.output to another disk, and start again', 1)
    """
    if isinstance(error, LoweringError):
        return str(error), FAILED
    if isinstance(error, RidgelineError):
        return str(error), BAD_INPUT
    cause = _known_cause(error)
    return cause or _unknown(error), FAILED


def _known_cause(error: BaseException | None) -> str | None:
    """A sentence for the first error of a chain that has a known way out."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OS_ERRORS:
            where = f" while writing {error.filename}" if error.filename else ""
            return _OS_ERRORS[error.errno].format(where=where)
        for sign, sentence in _SIGNS:
            if sign in str(error) or sign == type(error).__name__:
                return f"{sentence} ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        error = error.__cause__ or error.__context__
    return None


def _unknown(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    first = (str(error) or "no message").splitlines()[0]
    return f"{first}{where}; this is a fault of Ridgeline or below it: set {DEBUG}=1 for the whole traceback"


_FULL = "disk full{where}; free some space, or set run.output to another disk, and start again"
_OS_ERRORS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL.replace("disk full", "disk quota exceeded"),
    errno.EADDRINUSE: "the port is in use; set MASTER_PORT, or torchrun --master-port, to a free one",
    errno.EROFS: "the file system is read-only{where}; set run.output to a folder that can be written",
    errno.EACCES: "permission denied{where}; set run.output to a folder that can be written",
}
_SIGNS = (
    ("No space left on device", "disk full; free some space, or set run.output to another disk, and start again"),
    ("EADDRINUSE", "the port is in use; set MASTER_PORT, or torchrun --master-port, to a free one"),
    ("address already in use", "the port is in use; set MASTER_PORT, or torchrun --master-port, to a free one"),
    ("OutOfMemoryError", "out of device memory; raise layout.tp or layout.pp, or set memory.recompute to full"),
    ("DistStoreError", "the other ranks did not come; check that every node runs and reaches MASTER_ADDR:MASTER_PORT"),
    ("Connection closed by peer", "a rank died; its own message tells why, here or in its log"),
    ("Connection reset by peer", "a rank died; its own message tells why, here or in its log"),
    ("Timed out waiting", "a rank died or hangs; its own message tells why, here or in its log"),
)
