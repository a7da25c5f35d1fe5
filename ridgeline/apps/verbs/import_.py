"""``ridgeline import``: a MindSpeed-LLM or Megatron-LM launch script as a job file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, get_args

import attrs
from cyclopts import Parameter

from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give

if TYPE_CHECKING:
    from ridgeline.models.scripts.flags import Fate
    from ridgeline.models.scripts.job import Imported

WAYS_OUT = MappingProxyType({"model.vocab_size": "its tokenizer knows: give --model.vocab_size N"})


def import_(
    script: Path,
    /,
    *options: Overrides,
    output: Path | None = None,
    set: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
) -> int:
    """Read a launch script and print the job it describes as TOML; the fate of every flag goes to stderr.

    The script is read, never executed.

    Args:
        script: A shell script that starts a training with torchrun or python.
        options: Fields of the job that the script does not say, as --model.vocab_size 32000.
        output: Write the job file here, which must not exist.
        set: NAME=VALUE: a variable of the script that comes from the environment, or another value for it.
    """
    from ridgeline.apps.overrides import apply_overrides, parse_overrides
    from ridgeline.apps.planning import advice
    from ridgeline.core.codec import dumps
    from ridgeline.core.errors import Problem, SpecError
    from ridgeline.models.jobs import job_of
    from ridgeline.models.scripts.flags import Fate
    from ridgeline.models.scripts.job import import_command
    from ridgeline.models.scripts.model import named
    from ridgeline.models.scripts.shell import training_command
    from ridgeline.parallel.check import job_problems

    if wrong := [word for word in set if "=" not in word]:
        raise SpecError(Problem("--set", wrong[0], "must be NAME=VALUE"))
    try:
        text = script.read_bytes().decode(errors="replace")
    except OSError as error:
        raise SpecError(Problem("script", str(script), f"cannot be read: {error.strerror}")) from error
    variables = {name: value for name, _, value in (word.partition("=") for word in set)}
    imported = import_command(training_command(text, source=str(script), variables=variables))
    try:
        job = named(job_of(apply_overrides({"name": script.stem, **imported.plain}, parse_overrides(options))))
    except SpecError as error:
        found = (attrs.evolve(one, way_out=WAYS_OUT.get(one.path, one.way_out)) for one in error.problems)
        _tell(imported, ("not understood",))
        raise SpecError((*imported.problems, *found)) from None
    if imported.problems:
        _tell(imported, ("not understood",))
        raise SpecError(imported.problems)
    _tell(imported, get_args(Fate))
    if problems := job_problems(job):
        lines = "".join(f"  {problem}\n" for problem in (*problems, *advice(job)))
        sys.stderr.write(f"as it is, this job cannot be planned: {len(problems)}\n{lines}")
    give(dumps(job, format="toml"), path=output, option="--output", replace=False)
    return 0


def _tell(imported: "Imported", fates: Sequence["Fate"]) -> None:
    """Each flag of these fates, on stderr."""
    for fate in fates:
        entries = [entry for entry in imported.entries if entry.fate == fate]
        sys.stderr.write(f"{fate}: {len(entries)}\n" + "".join(f"  {entry}\n" for entry in entries))
