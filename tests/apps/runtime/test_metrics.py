"""The curve of a run as text."""

import errno
from pathlib import Path

import pytest

from ridgeline.apps.runtime.metrics import StepMetrics, appender, metrics_file, read_metrics

FULL = Path("/dev/full")


def metrics_of(step, **fields):
    figures = {"loss": 1 / step, "grad_norm": 1.0, "lr": 0.1, "tokens": 8, "skipped": False, "consumed_samples": step}
    speed = {"seconds": 1.0, "tokens_per_s": 8.0, "tflops_per_s": 0.1, "mfu": 0.01, "memory_bytes": 5}
    return StepMetrics(step=step, **{**figures, **speed, **fields})


def test_a_step_is_a_line_at_once(tmp_path):
    """A reader sees each step as soon as it was made, and a validation only where there was one."""
    path = tmp_path / "run" / "metrics.jsonl"
    with metrics_file(path, from_step=0) as append:
        append(metrics_of(1))
        assert [line["step"] for line in read_metrics(path)] == [1]
        append(metrics_of(2, valid_loss=0.25))
        first, second = read_metrics(path)
    assert "valid_loss" not in first
    assert second["valid_loss"] == 0.25
    assert second["loss"] == 0.5


def test_steps_that_run_again_are_not_told_twice(tmp_path):
    """What came after the checkpoint goes, a half line of a killed run too; what came before stays."""
    path = tmp_path / "metrics.jsonl"
    with metrics_file(path, from_step=0) as append:
        for step in range(1, 6):
            append(metrics_of(step))
    with path.open("ab") as stream:
        stream.write(b'{"step": 6, "lo')
    with metrics_file(path, from_step=3) as append:
        append(metrics_of(4, loss=9.0))
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0)]


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file():
    """The error tells which file could not be written."""
    with FULL.open("ab", buffering=0) as stream, pytest.raises(OSError, match="No space left") as caught:
        appender(stream, FULL)(metrics_of(1))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(FULL)
