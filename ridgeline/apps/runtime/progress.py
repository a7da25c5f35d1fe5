"""What a person sees of a run: a bar with the newest figures on a terminal, a line a step elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ridgeline.apps.runtime.metrics import StepMetrics


@contextmanager
def progress(
    console: Console, *, steps: int, from_step: int, log_every: int, planned_mfu: float | None
) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that shows a step.

    Args:
        console: Where to.
        steps: Of the whole run.
        from_step: Updates made when it goes on.
        log_every: Steps between lines; validated steps always have one.
        planned_mfu: The plan's prediction, for comparison.
    """

    def line(metrics: StepMetrics) -> None:
        if metrics.step % log_every == 0 or metrics.step in (from_step + 1, steps) or metrics.valid_loss is not None:
            console.print(step_line(metrics, steps=steps, planned_mfu=planned_mfu), highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("first step", total=steps, completed=from_step)

        def show(metrics: StepMetrics) -> None:
            line(metrics)
            figures = f"loss {metrics.loss:.4f}  {metrics.tokens_per_s:,.0f} tokens/s"
            bar.update(task, completed=metrics.step, description=figures)

        yield show


def step_line(metrics: StepMetrics, *, steps: int, planned_mfu: float | None = None) -> str:
    """A step in one line.

    Example:
        >>> figures = {"tokens_per_s": 1234.5, "tflops_per_s": 0.25, "mfu": 0.05, "memory_bytes": 3 << 30}
        >>> taken = {"tokens": 512, "consumed_samples": 96, "seconds": 0.5, "skipped": False}
        >>> step_line(StepMetrics(step=12, loss=4.5, grad_norm=1.25, lr=3e-4, **figures, **taken), steps=100)
        'step 12/100  loss 4.5000  grad norm 1.250  lr 3.00e-04  1,234 tokens/s  0.25 TFLOP/s  MFU 5.0%'
    """
    planned = f" (planned {planned_mfu:.1%})" if planned_mfu is not None else ""
    parts = [
        f"step {metrics.step}/{steps}",
        f"loss {metrics.loss:.4f}",
        *(f"mtp {loss:.4f}" for loss in metrics.mtp_losses),
        *([f"indexer {metrics.indexer_loss:.4f}"] if metrics.indexer_loss is not None else []),
        *([f"valid loss {metrics.valid_loss:.4f}"] if metrics.valid_loss is not None else []),
        f"grad norm {metrics.grad_norm:.3f}",
        f"lr {metrics.lr:.2e}",
        f"{metrics.tokens_per_s:,.0f} tokens/s",
        f"{metrics.tflops_per_s:.2f} TFLOP/s",
        f"MFU {metrics.mfu:.1%}{planned}",
        *_expert_parts(metrics),
        *(["SKIPPED: the gradients were not finite"] if metrics.skipped else []),
    ]
    return "  ".join(parts)


def _expert_parts(metrics: StepMetrics) -> Iterator[str]:
    """How the experts share the tokens."""
    if metrics.expert_tokens is not None:
        least, most = metrics.expert_tokens
        yield f"tokens an expert {least:,}..{most:,} (most {metrics.expert_imbalance:.2f} of the mean)"
    if metrics.expert_dropped:
        yield f"dropped {metrics.expert_dropped:.1%}"
    if metrics.balance_loss:
        yield f"balance loss {metrics.balance_loss:.4f}"
