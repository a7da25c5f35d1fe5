"""What to tell a person about an error: a message with the way out, and the exit code."""

import errno
import os
import re
import sys
import traceback

from ridgeline.core.errors import LoweringError, RidgelineError
from ridgeline.core.frozen import frozen

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
DEBUG = "RIDGELINE_DEBUG"
"""Variable that asks for tracebacks."""


@frozen
class Explained:
    """What is told of an error: the kind of error before each line of its message, and the exit code."""

    kind: str
    message: str
    code: int


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
    explained = explain(error)
    for line in explained.message.splitlines() if not silent else ():
        sys.stderr.write(f"{source}{explained.kind}: {line}\n")
    sys.stderr.flush()
    return explained.code


def explain(error: BaseException) -> Explained:
    """The message and the exit code of an error.

    Example:
        >>> explain(OSError(28, "No space left on device", "/data/x")).message
        'disk full while writing /data/x; free some space or set run.output to another disk, and start again'
    """
    if isinstance(error, RidgelineError):
        code = FAILED if isinstance(error, LoweringError) else BAD_INPUT
        return Explained(type(error).__name__, str(error), code)
    cause: BaseException | None = error
    while cause is not None:
        if known := _known_cause(cause):
            return Explained("ridgeline", known, FAILED)
        cause = cause.__cause__ or cause.__context__
    return Explained(type(error).__name__, _unknown(error), FAILED)


def _known_cause(error: BaseException) -> str | None:
    """A sentence for an error that has a known way out."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = f" while writing {error.filename}" if error.filename else ""
        return _DISK_ERRORS[error.errno].format(where=where)
    if "EADDRINUSE" in str(error):
        port = re.search(r"port: (\d+)", str(error))
        where = f"MASTER_PORT={port[1]}: " if port else ""
        return f"{where}the port is in use; set it, or torchrun --master-port, to a free one"
    signs = (sentence for sign, sentence in _SIGNS if re.search(sign, f"{type(error).__name__}: {error}"))
    return next(signs, None)


def _unknown(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    first = (str(error) or "no message").splitlines()[0]
    return f"{first}{where}; this is a fault of Ridgeline or below it: set {DEBUG}=1 for the whole traceback"


_DISK_ERRORS = {
    errno.ENOSPC: "disk full{where}; free some space or set run.output to another disk, and start again",
    errno.EDQUOT: "disk quota exceeded{where}; free some space or set run.output to another disk, and start again",
    errno.EFBIG: "file too large{where}; raise `ulimit -f` or set run.output to another disk, and start again",
    errno.EROFS: "the file system is read-only{where}; set run.output to a folder that can be written",
    errno.EACCES: "permission denied{where}; set run.output to a folder that can be written",
}
_SIGNS = (
    (r"No space left on device", "disk full; free some space or set run.output to another disk, and start again"),
    (r"^OutOfMemoryError", "out of device memory; raise layout.tp or layout.pp, or set memory.recompute to full"),
    (
        r"^DistStoreError|client socket has timed out|wait timeout",
        "the other ranks did not come; check that all were started and reach MASTER_ADDR and MASTER_PORT",
    ),
    (
        r"Connection (closed|reset) by peer|Timed out waiting|Broken pipe|heartbeat",
        "another rank died; it, or who started it, says why. What was saved is whole: start again to resume",
    ),
)
