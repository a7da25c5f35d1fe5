"""``ridgeline inspect``: what a folder of weights holds, whether it is whole, and where two differ."""

import sys
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Parameter

from ridgeline.apps.edges import edge
from ridgeline.apps.output import write_json
from ridgeline.apps.reading import read_model

DIFFERENT, NOT_WHOLE = 1, 2


def inspect(
    path: Path,
    /,
    *,
    against: Path | None = None,
    model: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tell what a checkpoint or a Hugging Face folder holds, and whether it is whole.

    Exit code 0: it is whole, and equal to the other one where there is one. 1: they differ. 2: it is damaged or no such
    folder.

    Args:
        path: A saved step, the folder of a run, a Hugging Face folder, or a checkpoint of Megatron-LM.
        against: Another one: every parameter that differs is told, with the largest difference of an element.
        model: Whose weights a foreign checkpoint holds: a preset, a job file or a folder with a config.json.
        json: Print it as JSON.
    """
    spec = read_model(model)
    contents = edge("ridgeline.checkpoint.io.contents:contents_of")(path, model=spec)
    found = None
    if against is not None and contents.fault is None:
        open_source = edge("ridgeline.checkpoint.io.open_source:open_source")
        pair = open_source(path, model=spec), open_source(against, model=spec)
        found = list(edge("ridgeline.checkpoint.io.contents:differences")(*pair))
    if json:
        told = attrs.asdict(contents) | ({} if found is None else {"differences": [attrs.asdict(one) for one in found]})
        write_json(told)
    else:
        sys.stdout.write("\n".join([*_lines(contents), *_difference_lines(found, against)]) + "\n")
    return NOT_WHOLE if contents.fault is not None else DIFFERENT if found else 0


def _lines(contents: Any) -> list[str]:
    """A line for each thing that is known."""
    if contents.format is None:
        return [f"{contents.folder}: cannot be read", *(f"  {line}" for line in contents.fault.splitlines())]
    rows = (
        ("format", contents.format),
        ("model", f"{contents.model} ({contents.family}), {contents.parameters:,} parameters"),
        ("layout", contents.layout),
        ("dtype", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in contents.dtypes)),
        ("size", f"{contents.tensors} tensors in {contents.files} files, {contents.bytes / 1e6:.1f} MB"),
        ("step", contents.step),
        ("job", contents.job),
        ("unused", ", ".join(contents.dropped)),
        ("whole", "yes" if contents.fault is None else f"no: {contents.fault}"),
    )
    return [f"{name:8}{value}" for name, value in rows if value not in (None, "")]


def _difference_lines(found: Any, against: Path | None) -> list[str]:
    if found is None:
        return []
    if not found:
        return [f"equal to {against}"]
    lines = [
        f"  {one.name}: {one.left or 'missing'} and {one.right or 'missing'}"
        if one.max_abs is None
        else f"  {one.name} {one.left}: {one.max_abs:.3e}"
        for one in found
    ]
    return [f"{len(found)} parameters differ from {against}, the largest difference of an element behind each:", *lines]
