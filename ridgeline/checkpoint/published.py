"""The tensors of Hugging Face files as buffers of our pieces, and how they are dealt out to files."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import prod

import attrs

from ridgeline.checkpoint.boxes import Box, Shape
from ridgeline.checkpoint.names import params_of, stored, stored_box
from ridgeline.checkpoint.pieces import Buffer, Piece, row_major
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_names import hf_shapes, hf_sources
from ridgeline.models.hf_source import (
    RowRun,
    RowSource,
    Source,
    Stacked,
    StackedRows,
    Transposed,
    published_shapes,
    row_runs,
)


@attrs.frozen
class FilePlan:
    """One file of an export: its name, and the indices of the tensors in it."""

    name: str
    tensors: tuple[int, ...]


def published_buffers(model: ModelSpec) -> tuple[Buffer, ...]:
    """Every tensor of a model's Hugging Face files, in model order, and the boxes of stored tensors it holds.

    Raises:
        SpecError: The model's family cannot express it.
    """
    params, pieces = params_of(model), defaultdict[str, list[Piece]](list)
    for fqn, source in hf_sources(model).items():
        place = stored(fqn, params[fqn])
        for tensor, box, start, strides in placed(source, params[fqn].shape):
            inner = stored_box(place, box)
            pieces[tensor].append(Piece(place.key, inner, start, (0,) * (len(inner.shape) - len(strides)) + strides))
    shapes = hf_shapes(model)
    return tuple(Buffer(name, shapes[name], tuple(parts)) for name, parts in pieces.items())


def placed(source: Source, shape: Shape) -> Iterator[tuple[str, Box, int, Shape]]:
    """Each box of our tensor of ``shape``: the published tensor that holds it, its start and its strides there."""
    if isinstance(source, Stacked):
        part, width = shape[0] // source.turns, prod(shape)
        for turn in range(source.turns):
            box = Box((turn * part, *(0 for _ in shape[1:])), (part, *shape[1:]))
            strides = (source.turns, *(shape[0] for _ in shape[1:]))
            yield source.name, box, source.expert * width + turn, strides
        return
    if isinstance(source, StackedRows):
        part = (shape[0] // len(source.names), *shape[1:])
        for place, name in enumerate(source.names):
            box = Box((place * part[0], *(0 for _ in shape[1:])), part)
            yield name, box, source.expert * prod(part), row_major(part)
        return
    if isinstance(source, Transposed):
        widths = {name: form[1] for name, form in published_shapes(source, shape).items()}
        for run, box in runs_of(source.rows, shape):
            yield run.tensor, box, run.start, (1, widths[run.tensor])
        return
    for run, box in runs_of(source, shape):
        strides = row_major(box.shape)
        yield run.tensor, box, run.start * (strides[0] if strides else 1), strides


def runs_of(source: RowSource, shape: Shape) -> Iterator[tuple[RowRun, Box]]:
    """The published rows that make our tensor of ``shape``, each run with the box of ours that it is."""
    row, beside = 0, (0,) * len(shape[1:])
    for run in row_runs(source, shape[0]):
        yield run, Box((row, *beside), (run.count, *shape[1:]))
        row += run.count


def plan_files(sizes: Sequence[int], *, max_bytes: int) -> tuple[FilePlan, ...]:
    """Deal tensors out to files in their order, a new file whenever the next would exceed ``max_bytes``.

    Example:
        >>> [file.name for file in plan_files([4, 4, 9, 1], max_bytes=8)]
        ['model-00001-of-00003.safetensors', 'model-00002-of-00003.safetensors', 'model-00003-of-00003.safetensors']
        >>> plan_files([4, 4], max_bytes=8)
        (FilePlan(name='model.safetensors', tensors=(0, 1)),)
    """
    groups: list[list[int]] = [[]]
    held = 0
    for index, size in enumerate(sizes):
        if groups[-1] and held + size > max_bytes:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += size
    if len(groups) == 1:
        return (FilePlan("model.safetensors", tuple(groups[0])),)
    names = (f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1))
    return tuple(FilePlan(name, tuple(group)) for name, group in zip(names, groups, strict=True))


def names_fault(
    found: Iterable[tuple[str, Shape]], expected: Iterable[tuple[str, Shape]], known: Iterable[str]
) -> tuple[str, ...]:
    """What is missing, of wrong shape or not known among found tensors, a line each; none when all fit.

    Args:
        found: Name and shape of every tensor that is there.
        expected: The same of every tensor that must be.
        known: Names that may be there besides.
    """
    there, needed = dict(found), dict(expected)
    missing = (f"  {name}: missing, expected {shape}" for name, shape in needed.items() if name not in there)
    wrong = (
        f"  {name}: has shape {there[name]}, expected {shape}"
        for name, shape in needed.items()
        if name in there and there[name] != shape
    )
    extra = (f"  {name}: is no tensor of this model" for name in there if name not in {*needed, *known})
    return *missing, *wrong, *extra
