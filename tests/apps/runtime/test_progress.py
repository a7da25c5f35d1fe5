"""What a person sees of a run."""

import io

import pytest
from rich.console import Console

from ridgeline.apps.runtime.metrics import StepMetrics
from ridgeline.apps.runtime.progress import progress, step_line


def metrics_of(step, **fields):
    figures = {"loss": 5.0 - step / 10, "grad_norm": 1.0, "lr": 0.1, "tokens": 8, "skipped": False}
    speed = {"seconds": 1.0, "tokens_per_s": 8.0, "tflops_per_s": 0.1, "mfu": 0.01, "memory_bytes": 5}
    return StepMetrics(step=step, consumed_samples=step, **{**figures, **speed, **fields})


def shown(*, terminal, steps=8, valid=5):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with progress(console, steps=steps, from_step=0, log_every=4, planned_mfu=0.4) as show:
        for step in range(1, steps + 1):
            show(metrics_of(step, valid_loss=4.0 if step == valid else None))
    return text.getvalue()


def test_lines_come_as_often_as_asked():
    """Besides the first step, the last and those that validate."""
    lines = shown(terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/8", "step 4/8", "step 5/8", "step 8/8"]
    assert "valid loss 4.0000" in lines[2]
    assert lines[-1].endswith("MFU 1.0% (planned 40.0%)")


def test_a_terminal_gets_a_bar_too():
    """With the newest loss and speed, below the lines."""
    text = shown(terminal=True)
    assert "step 4/8" in text
    assert "8/8" in text
    assert "loss 4.2000  8 tokens/s" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_skipped_step_is_loud(terminal):
    """Gradients that were not finite are no detail."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=300)
    with progress(console, steps=1, from_step=0, log_every=1, planned_mfu=None) as show:
        show(metrics_of(1, skipped=True, grad_norm=float("inf")))
    assert "SKIPPED: the gradients were not finite" in text.getvalue()


def test_a_model_with_experts_tells_how_they_share_the_tokens():
    load = {"expert_tokens": (3, 2048), "expert_imbalance": 1.5, "expert_dropped": 0.125, "balance_loss": 0.02}
    line = step_line(metrics_of(1, **load), steps=2)
    assert "tokens an expert 3..2,048 (most 1.50 of the mean)  dropped 12.5%  balance loss 0.0200" in line
    assert "expert" not in step_line(metrics_of(1), steps=2)
