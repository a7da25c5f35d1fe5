"""The curve of a run as text: one JSON object a step, flushed, with no step twice however often the run was resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import msgspec

FILE = "metrics.jsonl"


@attrs.frozen(kw_only=True)
class StepMetrics:
    """What a step did and how fast.

    Attributes:
        step: Updates made, this one included.
        loss, grad_norm, lr, tokens, skipped, mtp_losses, indexer_loss: As ``train_step`` reports them; what is infinite
            is null in the file.
        consumed_samples: Samples read from the beginning of the run.
        seconds: Of the step, reading its data included.
        tokens_per_s: Of all ranks.
        tflops_per_s: FLOPs of the model, per device.
        mfu: Share of the chip's peak, 0 .. 1.
        memory_bytes: Most memory this rank held at once.
        valid_loss: Mean loss of the validation batches, on the steps that validate.
        expert_tokens: Of a model with experts, tokens of the least and of the most busy one of all layers.
        expert_imbalance, expert_dropped, balance_loss: As `ExpertLoad` has them.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    skipped: bool
    consumed_samples: int
    seconds: float
    tokens_per_s: float
    tflops_per_s: float
    mfu: float
    memory_bytes: int
    valid_loss: float | None = None
    mtp_losses: tuple[float, ...] = ()
    indexer_loss: float | None = None
    expert_tokens: tuple[int, int] | None = None
    expert_imbalance: float | None = None
    expert_dropped: float | None = None
    balance_loss: float | None = None


@contextmanager
def metrics_file(path: Path, *, from_step: int) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that appends a step's line to a file.

    Args:
        path: Of the file; its lines of steps after ``from_step`` go, since those steps are run again.
        from_step: Updates made when the run goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in _lines(path) if line["step"] <= from_step]
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
    temporary.replace(path)
    with path.open("ab") as stream:
        yield appender(stream, path)


def appender(stream: BinaryIO, path: Path) -> Callable[[StepMetrics], None]:
    """A function that writes a step's line to an open file, flushed.

    Raises:
        OSError: From that function: the disk is full or gone; ``path`` is in the error.
    """

    def append(metrics: StepMetrics) -> None:
        fields = {name: value for name, value in attrs.asdict(metrics).items() if value not in (None, ())}
        try:
            stream.write(msgspec.json.encode(fields) + b"\n")
            stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    return append


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a run so far, each as a table."""
    return _lines(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a run that was killed may have left half of one."""
    lines = []
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            lines.append(msgspec.json.decode(text))
        except msgspec.DecodeError:
            continue
    return lines
