"""What a person is told about an error."""

import errno

import pytest

from ridgeline.apps.failures import explain, report
from ridgeline.core.errors import CheckpointError, DataError, LoweringError, PlanError, Problem, SpecError


def chained(outer, inner):
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (SpecError(Problem("a", 1, "rule")), "SpecError", 2),
        (PlanError(Problem("a", 1, "rule")), "PlanError", 2),
        (DataError("x"), "DataError", 2),
        (CheckpointError("x"), "CheckpointError", 2),
        (LoweringError("x"), "LoweringError", 1),
    ],
)
def test_our_errors_speak_for_themselves(error, kind, code):
    """With their own words; bad input is 2, what this machine cannot do is 1."""
    explained = explain(error)
    assert (explained.kind, explained.message, explained.code) == (kind, str(error), code)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            "disk full while writing /x; free some space or set run",
        ),
        (OSError(errno.EDQUOT, "quota"), "disk quota exceeded; free some space"),
        (OSError(errno.EACCES, "no", "/x"), "permission denied while writing /x; set run.output"),
        (RuntimeError("listen failed. port: 2950, name: EADDRINUSE"), "MASTER_PORT=2950: the port is in use; set it"),
        (RuntimeError("[pair.cc] Connection closed by peer [127.0.0.1]"), "another rank died; it, or who started it"),
        (chained(ValueError("x"), OSError(errno.EROFS, "r", "/y")), "the file system is read-only while writing /y"),
        (RuntimeError("write: No space left on device"), "disk full; free some space"),
    ],
)
def test_known_failures_come_with_the_way_out(error, message):
    """Whatever raised them, and however deep they lie."""
    explained = explain(error)
    assert explained.message.startswith(message)
    assert (explained.kind, explained.code) == ("ridgeline", 1)


def test_an_unknown_failure_is_one_line_with_its_place(capsys, monkeypatch):
    """And says how to see more; a process that is not to tell says nothing."""
    monkeypatch.delenv("RIDGELINE_DEBUG", raising=False)
    error = chained(TypeError("first\nsecond"), KeyError("inner"))
    assert report(error, source="rank 3: ") == 1
    told = capsys.readouterr().err
    assert told.startswith("rank 3: TypeError: first at ")
    assert f"{__file__}:" in told
    assert told.endswith("set RIDGELINE_DEBUG=1 for the whole traceback\n")
    assert told.count("\n") == 1
    assert report(error, silent=True) == 1
    assert capsys.readouterr().err == ""


def test_an_interrupt_says_nothing(capsys):
    """Who pressed the keys knows."""
    assert report(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
