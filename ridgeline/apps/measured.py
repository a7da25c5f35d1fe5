"""Measured runs from a file of JSON lines: a job, how fast it went, and what it is called."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ridgeline.core.errors import PlanError, Problem, SpecError, nearest, one_of
from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.job import Job
from ridgeline.models.jobs import job_of
from ridgeline.parallel.calibration import MeasuredRun
from ridgeline.parallel.check import job_problems

FIELDS = ("name", "family", "job", "profile")


def _tokens(job: Job) -> int:
    return job.batch.gbs * job.batch.seq_len


def _flops_per_device(job: Job) -> float:
    per_token = training_flops_per_token(job.model, job.batch.seq_len, attention="full")
    return _tokens(job) * per_token / job.cluster.world_size


MEASURES: Mapping[str, Callable[[Job, float], float]] = MappingProxyType(
    {
        "step_ms": lambda job, ms: ms * 1e3,
        "tokens_per_s": lambda job, rate: _tokens(job) / rate * 1e6,
        "tokens_per_s_per_device": lambda job, rate: _tokens(job) / job.cluster.world_size / rate * 1e6,
        "samples_per_s": lambda job, rate: job.batch.gbs / rate * 1e6,
        "mfu": lambda job, mfu: _flops_per_device(job) / (mfu * job.cluster.chip.cube_flops) * 1e6,
    }
)
"""How a run can say its speed: the step's time in microseconds from it. ``mfu`` counts full attention."""


def read_runs(path: Path, *, chip: str | None = None) -> tuple[MeasuredRun, ...]:
    """The runs of a file, one a line, empty lines left out.

    Args:
        path: The folder of a profile, which has a job and tells its step's time; or a file. Each line of it has
            ``job``, the name of a job file beside this one or a job's fields, and one of ``MEASURES``, or instead of
            both the folder of a ``profile``; ``name``, by default the job's, and ``family``, by default the model's
            name, are free.
        chip: Take the runs on this chip only; None takes all, which must then be of one chip.

    Raises:
        SpecError: Every fault of every line.
    """
    problems: list[Problem] = []
    runs: list[MeasuredRun] = []
    lines = [json.dumps({"profile": "."})] if path.is_dir() else _lines(path)
    folder = path if path.is_dir() else path.parent
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            runs.append(_run(line, folder=folder))
        except (SpecError, PlanError) as error:
            problems.extend(problem.under(f"{path.name}:{number}") for problem in error.problems)
    chips = tuple(dict.fromkeys(run.job.cluster.chip.name for run in runs))
    if not problems:
        problems.extend(_chip_problems(path, chip, chips))
    if problems:
        raise SpecError(problems)
    return tuple(run for run in runs if chip in (None, run.job.cluster.chip.name))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SpecError(Problem("runs", str(path), f"cannot be read: {error.strerror}")) from error
    except UnicodeDecodeError as error:
        raise SpecError(Problem("runs", str(path), f"is not UTF-8 text: {error.reason}")) from error


def _chip_problems(path: Path, chip: str | None, chips: tuple[str, ...]) -> Iterator[Problem]:
    if not chips:
        yield Problem("runs", str(path), "holds no run", "write one a line")
    elif chip is not None and chip not in chips:
        yield Problem("--chip", chip, "no run was on it", one_of(chips))
    elif chip is None and len(chips) > 1:
        yield Problem("runs", str(path), f"are of several chips: {', '.join(chips)}", "name one with --chip")


def _run(line: str, *, folder: Path) -> MeasuredRun:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise SpecError(Problem("line", line[:40], f"is not JSON: {error.msg} at column {error.colno}")) from error
    if not isinstance(fields, dict):
        raise SpecError(Problem("line", line[:40], "must be a table with a job and a measured speed"))
    if isinstance(profile := fields.get("profile"), str):
        fields = _of_profile(folder / profile) | {name: value for name, value in fields.items() if name != "profile"}
    measures = [name for name in MEASURES if name in fields]
    if problems := [*_field_problems(fields, measures)]:
        raise SpecError(problems)
    job = _job(fields["job"], folder)
    if faults := job_problems(job):
        raise PlanError(problem.under("job") for problem in faults)
    return MeasuredRun(
        name=fields.get("name", job.name),
        family=fields.get("family", job.model.name),
        job=job,
        step_us=MEASURES[measures[0]](job, float(fields[measures[0]])),
    )


def _of_profile(folder: Path) -> dict[str, Any]:
    """The job that was profiled, and its step's time."""
    from ridgeline.apps.profiles.folders import JOB_FILE, read_profiles
    from ridgeline.apps.profiles.summary import step_us

    profiles = read_profiles(folder)
    return {"job": str((folder / JOB_FILE).resolve()), "step_ms": step_us(profiles) / 1e3}


def _field_problems(fields: Mapping[str, Any], measures: list[str]) -> Iterator[Problem]:
    known = (*FIELDS, *MEASURES)
    for name in fields:
        if name not in known:
            yield Problem(name, fields[name], "unknown", nearest(name, known))
    for name in ("name", "family", "profile"):
        if not isinstance(fields.get(name, ""), str):
            yield Problem(name, fields[name], "must be text")
    if not isinstance(fields.get("job"), (str, dict)):
        yield Problem("job", fields.get("job"), "must be a job's fields, or the name of a job file")
    if len(measures) != 1:
        yield Problem("measure", tuple(measures), "must be one", one_of(tuple(MEASURES)))
    for name in measures:
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            yield Problem(name, value, "must be a number > 0")


def _job(job: str | dict[str, Any], folder: Path) -> Job:
    from ridgeline.apps.reading import read_plain

    return job_of(read_plain(folder / job) if isinstance(job, str) else job)
