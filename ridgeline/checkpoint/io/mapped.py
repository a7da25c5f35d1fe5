"""Files mapped into memory, and the tensors in them: nothing is read before it is copied, and nothing is held."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs
import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.core.errors import CheckpointError

Strided: TypeAlias = Callable[[int, Shape, Shape], torch.Tensor]


@attrs.frozen(eq=False)
class FileTensor:
    """A tensor in a file.

    Attributes:
        dtype: Of what is read.
        shape: Row-major.
        strided: Reads elements by start, shape and strides, counted in elements as in ``pieces.py``; what it gives may
            be a view of the file.
    """

    dtype: torch.dtype
    shape: Shape
    strided: Strided = attrs.field(repr=False)


def map_file(path: Path, within: Path) -> torch.Tensor:
    """All bytes of a file, (bytes,) uint8, mapped.

    Args:
        path: The file.
        within: The folder it must lie in. A link out of it is refused, unless into the ``blobs`` of a Hugging Face
            cache that the folder is a snapshot of.

    Raises:
        CheckpointError: It is missing, empty, or a link that leads out.
    """
    check_inside(path, within)
    if not path.is_file():
        raise CheckpointError(f"file={path}: is missing")
    size = path.stat().st_size
    if not size:
        raise CheckpointError(f"file={path}: is damaged or cut short: it is empty")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def check_inside(path: Path, within: Path) -> None:
    """Raise where a file is a link that leads out of a folder."""
    root, target = within.resolve(), path.resolve()
    if not (target.is_relative_to(root) or target.is_relative_to(root.parent.parent / "blobs")):
        raise CheckpointError(f"file={path}: is a link to {target}, out of {within}: refused; copy the file there")


def tensor_at(mapped: torch.Tensor, *, start: int, dtype: torch.dtype, shape: Shape) -> FileTensor:
    """A row-major tensor at a byte of a mapped file; one that is not aligned is copied when it is read."""
    raw = mapped[start : start + dtype.itemsize * torch.Size(shape).numel()]

    def strided(begin: int, part: Shape, strides: Shape) -> torch.Tensor:
        data = raw.clone() if raw.storage_offset() % dtype.itemsize else raw
        flat = data.view(dtype)
        return flat.as_strided(part, strides, flat.storage_offset() + begin)

    return FileTensor(dtype, shape, strided)


def tensor_of(tensor: torch.Tensor) -> FileTensor:
    """A tensor at hand, as one in a file."""
    flat = tensor.reshape(-1)
    return FileTensor(
        tensor.dtype,
        tuple(tensor.shape),
        lambda start, shape, strides: flat.as_strided(shape, strides, flat.storage_offset() + start),
    )
