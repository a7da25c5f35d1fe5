"""A ``torch_dist`` folder, read: boxes of its tensors, from files mapped when first needed and verified once.

Whatever in its files is not a tensor or plain data is refused.
"""

import io
from pathlib import Path
from typing import Any

import attrs
import torch

from ridgeline.checkpoint.boxes import Box, meeting, slices, within
from ridgeline.checkpoint.io.mapped import check_inside
from ridgeline.checkpoint.io.tensor_zip import find_tensor
from ridgeline.checkpoint.io.torch_dist.index import COMMON, INDEX, Chunk, Index, StoredTensor, read_index
from ridgeline.core.errors import CheckpointError


@attrs.frozen
class Reader:
    """An open checkpoint: its index, the files mapped so far, and which parts (file, start) were verified."""

    folder: Path
    index: Index
    files: dict[str, torch.Tensor] = attrs.field(factory=dict, repr=False)
    verified: set[tuple[str, int]] = attrs.field(factory=set, repr=False)


def open_checkpoint(folder: Path) -> Reader:
    """Open a checkpoint for reading; files are mapped when first needed.

    Raises:
        CheckpointError: As of ``read_index``, or a file that it names is missing, cut short or a link that leads out.
    """
    index = read_index(folder)
    parts = (*(chunk for tensor in index.tensors.values() for chunk in tensor.chunks), *index.objects.values())
    needed: dict[str, int] = {}
    for part in parts:
        needed[part.file] = max(needed.get(part.file, 0), part.start + part.length)
    for name, size in needed.items():
        _check_file(folder / name, size, folder)
    return Reader(folder, index)


def read_box(reader: Reader, key: str, box: Box, out: torch.Tensor) -> None:
    """Copy a box of a stored tensor into ``out``, of the box's shape and any dtype and device.

    Elements of the box that lie beyond the stored tensor keep what ``out`` holds.

    Raises:
        CheckpointError: The key is absent, or a file it needs is cut short or damaged.
    """
    for chunk in stored_tensor(reader, key).chunks:
        if shared := meeting(chunk.box, box):
            source = chunk_data(reader, key, chunk)[slices(within(shared, chunk.box))]
            out[slices(within(shared, box))].copy_(source)


def read_object(reader: Reader, key: str) -> Any:
    """An object that is no tensor: plain data and tensors only.

    Raises:
        CheckpointError: The key is absent, its file is damaged, or it holds code.
    """
    stored = reader.index.objects.get(key)
    if stored is None:
        raise CheckpointError(f"checkpoint={reader.folder}: holds no {key}")
    mapped = _mapped(reader, stored.file, stored.start + stored.length)
    stream = io.BytesIO(mapped[stored.start : stored.start + stored.length].numpy().tobytes())
    try:
        (data,) = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes make it
        rule = f"{key} is damaged or holds code: {_told(error)}"
        raise CheckpointError(f"file={reader.folder / stored.file}: {rule}") from error
    return data


def read_common(folder: Path) -> dict[str, Any]:
    """What is the same for all ranks.

    Raises:
        CheckpointError: The file is missing, damaged or holds code.
    """
    path = folder / COMMON
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes make it
        raise CheckpointError(f"file={path}: is missing, damaged or holds code: {_told(error)}") from error


def _told(error: Exception) -> str:
    """What torch says, without its advice to read the file all the same."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.startswith(advice)), type(error).__name__)


def stored_tensor(reader: Reader, key: str) -> StoredTensor:
    """What the index says of a tensor.

    Raises:
        CheckpointError: The checkpoint holds none of this key.
    """
    stored = reader.index.tensors.get(key)
    if stored is None:
        raise CheckpointError(f"checkpoint={reader.folder}: holds no tensor {key}")
    return stored


def chunk_data(reader: Reader, key: str, chunk: Chunk) -> torch.Tensor:
    """All elements of one stored box, of its shape: mapped where alignment allows.

    Raises:
        CheckpointError: Its file is missing, cut short or damaged.
    """
    mapped = _mapped(reader, chunk.file, chunk.start + chunk.length)
    place = (chunk.file, chunk.start)
    try:
        data = find_tensor(
            mapped,
            start=chunk.start,
            length=chunk.length,
            dtype=stored_tensor(reader, key).dtype,
            shape=chunk.box.shape,
            verify=place not in reader.verified,
        )
    except CheckpointError as error:
        raise CheckpointError(f"file={reader.folder / chunk.file}: {key}{chunk.box}: {error}") from error
    reader.verified.add(place)
    return data


def _mapped(reader: Reader, name: str, needed: int) -> torch.Tensor:
    path = reader.folder / name
    if name not in reader.files:
        _check_file(path, needed, reader.folder)
        size = path.stat().st_size
        reader.files[name] = (
            torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0)
        )
    return reader.files[name]


def _check_file(path: Path, needed: int, folder: Path) -> None:
    check_inside(path, folder)
    if not path.is_file():
        raise CheckpointError(f"file={path}: is missing; {INDEX} names it")
    if (size := path.stat().st_size) < needed:
        raise CheckpointError(f"file={path}: is cut short: it holds {size} bytes, expected at least {needed}")
