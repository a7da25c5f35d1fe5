"""The job that a command names: a job file, a preset or a model's folder, with options on top."""

from collections.abc import Sequence
from pathlib import Path

from ridgeline.apps.overrides import apply_overrides, parse_overrides
from ridgeline.core.codec import FORMATS, Plain, format_of, parse
from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.model import ModelSpec
from ridgeline.models.jobs import DEFAULT_CLUSTER, Chosen, job_of, preset_job
from ridgeline.models.zoo import model_names


def read_job(source: str, options: Sequence[str] = ()) -> Chosen:
    """The job a command works on, and what was chosen for it.

    Args:
        source: A file (``.toml``, ``.yaml``, ``.json``), which says everything that is not a spec's default. Or the
            name of a preset, or a folder with a Hugging Face ``config.json``: layout and batch are chosen by rule.
        options: Raw tokens, ``--layout.tp 8``.

    Raises:
        SpecError: Every fault of the source and of the options.
    """
    overrides = parse_overrides(options)
    path = Path(source)
    if path.is_dir():
        return preset_job(apply_overrides({"model": {"hf": source}, "cluster": DEFAULT_CLUSTER}, overrides))
    if path.suffix.lower().removeprefix(".") in {*FORMATS, "yml"}:
        return Chosen(job=job_of(apply_overrides(read_plain(path), overrides)))
    if source not in model_names():
        rule = "is no preset, and no job file (.toml, .yaml, .json) or model folder is there"
        raise SpecError(Problem("job", source, rule, nearest(source, model_names())))
    return preset_job(apply_overrides({"model": source, "cluster": DEFAULT_CLUSTER}, overrides))


def read_model(name: str | None) -> ModelSpec | None:
    """The model that an option names as a command names its job; None where it was not given.

    Raises:
        SpecError: Every fault of the source.
    """
    return None if name is None else read_job(name).job.model


def read_plain(path: Path) -> Plain:
    """The plain data of a file.

    Raises:
        SpecError: It cannot be read, is not of its format, or holds no table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(Problem("file", str(path), f"cannot be read: {error.strerror}")) from error
    except UnicodeDecodeError as error:
        raise SpecError(
            Problem("file", str(path), f"is not UTF-8 text: {error.reason} at byte {error.start}")
        ) from error
    plain = parse(text, format=format_of(path), source=str(path))
    if not isinstance(plain, dict):
        raise SpecError(Problem("file", str(path), "must hold a table of the fields of a job"))
    return plain
