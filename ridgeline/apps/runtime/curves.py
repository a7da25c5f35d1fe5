"""The curves of a run for TensorBoard."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ridgeline.apps.runtime.metrics import StepMetrics

EXPERTS = ("expert_imbalance", "expert_dropped", "balance_loss")
CURVES = ("loss", "valid_loss", "grad_norm", "lr", "tokens_per_s", "tflops_per_s", "mfu", *EXPERTS)


@contextmanager
def tensorboard(folder: Path, *, from_step: int) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that adds a step to the curves; what an earlier run left of steps after ``from_step`` is hidden."""
    # Protocol buffers make their classes when they are imported, out of a type checker's sight.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder), flush_secs=10)

    def add(metrics: StepMetrics) -> None:
        values = {name: value for name, value in attrs.asdict(metrics).items() if name in CURVES and value is not None}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=metrics.step, summary=summary))

    try:
        started = SessionLog(status=SessionLog.START)
        writer.add_event(Event(wall_time=time.time(), step=from_step + 1, session_log=started))
        yield add
    finally:
        writer.close()
