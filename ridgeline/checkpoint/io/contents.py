"""What a folder of weights holds, whether it is whole, and where two differ."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from ridgeline.checkpoint.boxes import Box, cut, whole
from ridgeline.checkpoint.io.manifest import read_manifest, size_fault
from ridgeline.checkpoint.io.open_source import open_source
from ridgeline.checkpoint.io.sources import Opened, weights_in
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.names import params_of
from ridgeline.core.errors import RidgelineError
from ridgeline.core.frozen import frozen
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from ridgeline.core.params import num_params

COMPARED_ELEMENTS = 1 << 22
LAYOUT_FIELDS = ("tp", "pp", "vpp", "ep", "etp", "stages", "noop_layers", "schedule")


@frozen(kw_only=True)
class Contents:
    """What a folder holds.

    Attributes:
        folder: As it was named.
        fault: Why it is not whole or cannot be read, in words; None when it is whole.
        format: hf, torch_dist or classic; None where it cannot be told.
        model, family, parameters: Whose weights they are.
        layout: The degrees it was written for, where files or the job say so.
        dtypes: Bytes of each dtype.
        bytes, tensors, files: How much there is.
        step: Of training; None where nobody says.
        job: Name of the job that trained it.
        dropped: Tensors that the model has no use for.
    """

    folder: str
    fault: str | None = None
    format: str | None = None
    model: str | None = None
    family: str | None = None
    parameters: int | None = None
    layout: str | None = None
    dtypes: tuple[tuple[str, int], ...] = ()
    bytes: int = 0
    tensors: int = 0
    files: int = 0
    step: int | None = None
    job: str | None = None
    dropped: tuple[str, ...] = ()


@frozen(kw_only=True)
class Difference:
    """One parameter in which two folders differ.

    Attributes:
        name: Full name.
        left, right: Its shape in each; None where there is none.
        max_abs: The largest absolute difference of an element; None where the shapes differ.
    """

    name: str
    left: tuple[int, ...] | None
    right: tuple[int, ...] | None
    max_abs: float | None = None


def contents_of(folder: str | Path, *, model: ModelSpec | None = None) -> Contents:
    """What a folder holds; one that cannot be read has a ``fault``."""
    try:
        opened = open_source(folder, model=model)
        fault = _unlike_manifest(Path(folder))
    except RidgelineError as error:
        return Contents(folder=str(folder), fault=str(error))
    dtypes: dict[str, int] = {}
    for tensor in opened.tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + math.prod(tensor.shape) * tensor.dtype.itemsize
    job = opened.record.job if opened.record else None
    layout = opened.layout or (job.layout if job else None)
    return Contents(
        folder=str(folder),
        fault=fault,
        format=opened.format,
        model=opened.model.name,
        family=opened.model.family,
        parameters=num_params(opened.model),
        layout=None if layout is None else degrees(layout),
        dtypes=tuple(sorted(dtypes.items(), key=lambda item: -item[1])),
        bytes=sum(dtypes.values()),
        tensors=len(opened.tensors),
        files=len(opened.files),
        step=opened.record.step if opened.record and job else None,
        job=job.name if job else None,
        dropped=opened.dropped,
    )


def differences(left: Opened, right: Opened) -> Iterator[Difference]:
    """Every parameter in which two opened folders differ, in the order of the left one's model."""
    ours, theirs = params_of(left.model), params_of(right.model)
    read_left, read_right = weights_in(left), weights_in(right)
    for name in dict.fromkeys((*ours, *theirs)):
        shapes = tuple(table[name].shape if name in table else None for table in (ours, theirs))
        if shapes[0] is None or shapes[0] != shapes[1]:
            yield Difference(name=name, left=shapes[0], right=shapes[1])
            continue
        largest = 0.0
        for box in cut(whole(shapes[0]), COMPARED_ELEMENTS):
            largest = max(largest, _largest(read_left, read_right, name, box), key=_nan_first)
        if largest != 0.0:
            yield Difference(name=name, left=shapes[0], right=shapes[1], max_abs=largest)


def degrees(layout: Layout) -> str:
    """The degrees of a layout, in words.

    Example:
        >>> degrees(Layout(tp=2, pp=4, noop_layers=(7,)))
        'tp=2 pp=4 noop_layers=(7,)'
    """
    changes = ((name, getattr(layout, name)) for name in LAYOUT_FIELDS)
    return " ".join(f"{name}={value}" for name, value in changes if value != getattr(Layout(), name)) or "one rank"


def _largest(read_left: Weights, read_right: Weights, name: str, box: Box) -> float:
    ours, theirs = torch.empty(box.shape), torch.empty(box.shape)
    read_left(name, box, ours)
    read_right(name, box, theirs)
    both_nan = ours.isnan() & theirs.isnan()
    return float((ours - theirs).abs().masked_fill(both_nan | (ours == theirs), 0.0).max())


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _unlike_manifest(folder: Path) -> str | None:
    """What differs in size from what a conversion wrote."""
    manifest = read_manifest(folder)
    faults = (size_fault(folder, file) for file in manifest.files) if manifest else ()
    return next((fault for fault in faults if fault), None)
