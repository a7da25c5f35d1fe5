"""Where a run's profile lies, and what is in the folder."""

from pathlib import Path

from ridgeline.apps.profiles import ascend, torch_trace
from ridgeline.apps.profiles.summary import RankProfile
from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.job import Job

JOB_FILE = "job.json"
"""The job that was profiled, beside the files of its ranks."""


def profile_folder(job: Job) -> Path:
    """Where a job's profile goes."""
    named = job.profile.output if job.profile is not None else None
    return Path(job.run.output) / "profile" if named is None else Path(named)


def read_profiles(folder: Path) -> tuple[RankProfile, ...]:
    """The newest profile of every rank in a folder, by rank.

    Raises:
        SpecError: The folder holds none, or one that is damaged.
    """
    found = dict.fromkeys(folder.glob("rank*.pt.trace.json"), torch_trace.read)
    found |= dict.fromkeys(folder.glob(f"rank*_ascend_pt/{ascend.RESULTS}"), ascend.read)
    newest: dict[int, Path] = {}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
        newest[_rank(str(path.relative_to(folder)))] = path
    if not newest:
        raise SpecError(
            Problem("folder", str(folder), "holds no profile of a run", "give profile.output of a job that was trained")
        )
    return tuple(found[path](path, rank=rank) for rank, path in sorted(newest.items()))


def _rank(name: str) -> int:
    digits = name.removeprefix("rank").replace("_", ".").split(".")[0]
    return int(digits) if digits.isdecimal() else 0
