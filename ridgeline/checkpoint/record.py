"""What a checkpoint says of itself, in ``ridgeline.json``: its step, its job, and which files it is made of."""

from collections.abc import Iterator

import attrs

from ridgeline.core.codec import dumps, loads
from ridgeline.core.diff import Change, diff
from ridgeline.core.errors import CheckpointError, Problem, SpecError
from ridgeline.core.fields import at_least, check_spec, many
from ridgeline.core.job import Job
from ridgeline.core.model import ModelSpec

RECORD = "ridgeline.json"
FORMAT = 1

WITHOUT_EFFECT = frozenset(("name", "family", "init_std", "max_position"))
"""Fields of a model that do not change what its weights mean."""


@attrs.frozen(kw_only=True)
class StoredFile:
    """A file of a checkpoint and its size."""

    name: str
    bytes: int = at_least(0)
    __attrs_post_init__ = check_spec


@attrs.frozen(kw_only=True)
class Record:
    """What ``ridgeline.json`` holds.

    Attributes:
        format: Of this record and of the keys beside it.
        step: Updates made.
        optimizer_step: Updates that changed the weights: those with a finite gradient.
        consumed_samples: Samples that training has read; with the job's seed they tell the next one.
        job: What was run; None when the weights came from elsewhere.
        model: Whose weights they are, when there is no job to say so.
        files: Every other file, with its size.
    """

    format: int = at_least(1, default=FORMAT)
    step: int = at_least(0)
    optimizer_step: int = at_least(0, default=0)
    consumed_samples: int = at_least(0, default=0)
    job: Job | None = None
    model: ModelSpec | None = None
    files: tuple[StoredFile, ...] = many()
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if (self.job is None) == (self.model is None):
            yield Problem("model", self.model, "must be given when job is not, and only then")


def model_of(record: Record) -> ModelSpec:
    """Whose weights a checkpoint holds."""
    model = record.job.model if record.job else record.model
    assert model is not None
    return model


def record_text(record: Record) -> str:
    """The text of ``ridgeline.json``."""
    return dumps(record)


def read_record(text: str, *, source: str) -> Record:
    """The record in a text.

    Raises:
        CheckpointError: It is none, or of a later format; ``source`` names it.
    """
    try:
        record = loads(text, Record, source=source)
    except SpecError as error:
        raise CheckpointError(f"file={source}: is not what Ridgeline writes:\n{error}") from error
    if record.format > FORMAT:
        rule = f"is of a later format than {FORMAT}"
        raise CheckpointError(f"file={source}: {Problem('format', record.format, rule, 'use a newer Ridgeline')}")
    return record


def model_changes(saved: ModelSpec, wanted: ModelSpec) -> tuple[Change, ...]:
    """Where two models differ in what their weights mean: field, saved value, wanted value."""
    return tuple(change for change in diff(saved, wanted) if change.path not in WITHOUT_EFFECT)
