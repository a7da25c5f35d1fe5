"""Which boxes of our tensors equal which boxes of the published ones they are made of, and the files those go into."""

from collections.abc import Iterable, Iterator, Sequence

import attrs

from ridgeline.checkpoint.boxes import Box, Shape
from ridgeline.models.hf_source import Source, row_runs


@attrs.frozen
class Copy:
    """Equal boxes: ``published`` in the published tensor, ``ours`` in ours."""

    tensor: str
    published: Box
    ours: Box


@attrs.frozen
class FilePlan:
    """One file of an export: its name, and the indices of the tensors in it."""

    name: str
    tensors: tuple[int, ...]


def copies_of(source: Source, shape: Shape, box: Box) -> Iterator[Copy]:
    """The copies that make up a box of one of our tensors, in the order of its rows.

    Args:
        source: Of which published tensors ours is made.
        shape: Of all of ours.
        box: The part that is wanted.
    """
    row = 0
    for run in row_runs(source, shape[0]):
        first = max(row, box.offset[0])
        count = min(row + run.count, box.offset[0] + box.shape[0]) - first
        if count > 0:
            beside = box.offset[1:]
            published = Box((run.start + first - row, *beside), (count, *box.shape[1:]))
            yield Copy(run.tensor, published, Box((first, *beside), published.shape))
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


def names_fault(found: Iterable[tuple[str, Shape]], expected: Iterable[tuple[str, Shape]], known: Iterable[str]) -> str:
    """What is missing, of wrong shape or not known among found tensors, a line each; empty when all fit.

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
    return "\n".join((*missing, *wrong, *extra))
