"""``ridgeline search``: the fastest layout that fits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ridgeline.apps.options import Overrides
from ridgeline.apps.output import open_console, write_json


def search(
    job: str,
    /,
    *options: Overrides,
    fix: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    all: Annotated[bool, Parameter(negative="")] = False,
    top: int = 5,
    within: float = 1.05,
    output: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find the fastest layout of a job that fits, exactly, and tell why its neighbours lose.

    An axis that is given is searched no further: --tp 4 keeps tp, --tp 1,2,4 tries these three; between lists of stages
    stands a semicolon. Exit code 1: nothing fits; what would have to change is told.

    Args:
        job: A job file, a preset or a model folder; its own layout does not matter.
        options: Fields of the job, as --gbs 128, or values of an axis, as --tp 1,2,4.
        fix: One value of an axis, as --fix layout.tp=2.
        all: Search layouts too that are only planned, which this runtime does not run yet; they are marked.
        top: How many meshes to rank.
        within: How far the ranking and the front reach, times the best step.
        output: Write the best layout as a job file for plan and train: .toml, .yaml or .json.
        json: Print everything as JSON instead.
    """
    from ridgeline.apps.reading import read_job
    from ridgeline.models.lowerable import lowering_faults
    from ridgeline.parallel.search import grid_of
    from ridgeline.parallel.search import search as search_of

    given = _axes_given([*options, *(f"--{one}" for one in fix)])
    chosen = read_job(job, given.pop("", []))
    grid = grid_of(chosen.job, **{axis: _values(chosen.job, axis, texts) for axis, texts in given.items()})
    result = search_of(chosen.job, grid, lowering_faults=lowering_faults, planned_only=all, top=top, within=within)
    if output is not None and result.best is not None:
        from ridgeline.apps.files import write_whole
        from ridgeline.core.codec import dumps, format_of

        write_whole(output, dumps(result.best.job, format=format_of(output)), option="--output")
    if json:
        from ridgeline.apps.reports.search import search_data

        write_json(search_data(result))
    else:
        from ridgeline.apps.reports.search import print_search

        print_search(result, open_console())
    return 0 if result.best else 1


LISTS = ("stages", "moe_overlap")
"""Axes whose values are lists."""


def _axes_given(tokens: Sequence[str]) -> dict[str, list[str]]:
    """The texts of each axis that is given; under ``""`` the options that are the job's.

    Example:
        >>> _axes_given(["--tp", "1,2", "--gbs", "64", "--layout.stages", "3,5;4,4"])
        {'': ['--batch.gbs=64'], 'tp': ['1', '2'], 'stages': ['3,5', '4,4']}
    """
    from ridgeline.apps.overrides import parse_overrides
    from ridgeline.parallel.search.grid import PATHS

    axes = {path: axis for axis, path in PATHS.items()}
    given: dict[str, list[str]] = {"": []}
    for override in parse_overrides(tokens):
        path, text = ".".join(override.path), "true" if override.text is True else str(override.text)
        if path in axes:
            given[axes[path]] = text.split(";" if axes[path] in LISTS else ",")
        else:
            given[""].append(f"--{path}={text}")
    return given


def _values(job: Any, axis: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """Texts as values of an axis, by the rules of the field of a job that it sets."""
    from ridgeline.apps.overrides import apply_overrides, parse_overrides
    from ridgeline.core.codec import unstructure
    from ridgeline.models.jobs import job_of
    from ridgeline.parallel.search.grid import PATHS

    table, field = PATHS[axis].split(".")
    plain = unstructure(job)
    jobs = (job_of(apply_overrides(plain, parse_overrides([f"--{table}.{field}={text}"]))) for text in texts)
    return tuple(getattr(getattr(one, table), field) for one in jobs)
