"""``ridgeline export``: a job as the arguments of another launcher."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ridgeline.apps.options import Overrides
from ridgeline.apps.output import give
from ridgeline.apps.reading import read_job
from ridgeline.core.errors import Problem, SpecError


def export(
    job: str,
    /,
    *options: Overrides,
    megatron_args: Annotated[bool, Parameter(negative="")] = False,
    output: Annotated[Path | None, Parameter(name=("--file", "-o"))] = None,
) -> int:
    """Print a job as arguments, a flag a line, to stand behind pretrain_gpt.py.

    Args:
        job: A job file, a preset or a model folder.
        options: Fields of the job, as --layout.tp 8.
        megatron_args: In Megatron-LM's words, the only ones there are so far.
        output: Where to write them; by default they are printed.
    """
    from shlex import join

    from ridgeline.models.scripts.megatron_args import megatron_args as arguments_of

    if not megatron_args:
        raise SpecError(Problem("export", job, "does not say in whose words", "add --megatron-args"))
    lines = map(join, arguments_of(read_job(job, options).job))
    give(" \\\n".join(lines) + "\n", path=output, option="--file")
    return 0
