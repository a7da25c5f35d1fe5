"""Checkpoints on the disk: which one a path means, and what it says of itself."""

from collections.abc import Collection
from pathlib import Path

import attrs

from ridgeline.checkpoint.io.folders import latest, saved_steps, write_file
from ridgeline.checkpoint.record import RECORD, Record, StoredFile, model_changes, model_of, read_record, record_text
from ridgeline.core.errors import CheckpointError
from ridgeline.core.job import Lora
from ridgeline.core.model import ModelSpec

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""


def find_checkpoint(path: str | Path) -> Path:
    """The saved step that a path means: the step itself, or the latest one of a run or of a run's checkpoints.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(path)
    if (path / RECORD).is_file():
        return path
    found = latest(path) or latest(path / CHECKPOINTS)
    if found is None:
        rule = "holds no checkpoint that Ridgeline wrote" if path.is_dir() else "is no folder"
        way_out = "name a saved step, or the folder of a run"
        if (path / "config.json").is_file():
            rule, way_out = "is a Hugging Face folder", "start from it with --from-hf"
        raise CheckpointError(f"checkpoint={path}: {rule}; {way_out}")
    return found


def open_record(folder: str | Path) -> Record:
    """What a saved step says of itself.

    Raises:
        CheckpointError: It says nothing, or one of its files is missing or not as long as it was.
    """
    folder = Path(folder)
    path = folder / RECORD
    if not path.is_file():
        known = ", ".join(step.name for step in saved_steps(folder).values())
        hint = f"; it holds {known}" if known else ""
        raise CheckpointError(f"checkpoint={folder}: has no {RECORD}; name the folder of one saved step{hint}")
    record = record_in(folder)
    for file in record.files:
        if not (folder / file.name).is_file():
            rule = f"is missing, expected {file.bytes} bytes"
            raise CheckpointError(f"file={folder / file.name}: {rule}; restore it, or remove this step")
        if (size := (folder / file.name).stat().st_size) != file.bytes:
            raise CheckpointError(
                f"file={folder / file.name}: is damaged: it holds {size} bytes, expected {file.bytes}; "
                "restore it, or remove this step"
            )
    return record


def record_in(folder: Path) -> Record:
    """What the record in a folder says, which must be there.

    Raises:
        CheckpointError: It is none, or of a later format.
    """
    path = folder / RECORD
    return read_record(path.read_text(errors="replace"), source=str(path))


def write_record(folder: Path, record: Record, *, without: Collection[str] = ()) -> None:
    """Write what a checkpoint says of itself, once all its other files are there; it is silent of some."""
    there = (path for path in sorted(folder.iterdir()) if path.name not in without)
    files = [StoredFile(name=path.name, bytes=path.stat().st_size) for path in there]
    write_file(folder / RECORD, record_text(attrs.evolve(record, files=files)).encode())


def check_resumable(record: Record, model: ModelSpec, folder: Path, *, adapter: Lora | None = None) -> None:
    """Raise unless a checkpoint holds the state of training this model, with such adapters."""
    if record.job is None and not record.optimizer_step:
        rule = "holds weights and no state of a training run"
        raise CheckpointError(f"checkpoint={folder}: {rule}; start from it with init.checkpoint")
    if (saved := record.job.adapter if record.job else None) != adapter:
        way_out = "use the job it was saved with, or start from its weights with init.checkpoint"
        raise CheckpointError(f"checkpoint={folder}: was saved with adapter={saved}, not {adapter}; {way_out}")
    if changes := model_changes(model_of(record), model):
        told = "\n".join(f"  model.{change}" for change in changes)
        raise CheckpointError(
            f"checkpoint={folder}: is of another model; saved -> asked for:\n{told}\n"
            "  use the job it was saved with, or start from its weights with init.checkpoint if they fit"
        )
