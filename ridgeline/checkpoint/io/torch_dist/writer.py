"""A ``torch_dist`` folder, written: a file of boxes a rank, then the index over all, once each tensor is whole."""

import io
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    _StorageInfo,
)  # the format has no public name for either
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ridgeline.checkpoint.boxes import Box, cut, slices, tiling_fault, within
from ridgeline.checkpoint.io.folders import write_file
from ridgeline.checkpoint.io.tensor_zip import MAX_BYTES, write_tensor
from ridgeline.checkpoint.io.torch_dist.index import COMMON, FORMAT, INDEX
from ridgeline.core.errors import CheckpointError


@attrs.frozen
class TensorItem:
    """A box of a tensor to be written, with its data: of the box's shape, on any device."""

    key: str
    shape: tuple[int, ...]
    box: Box
    data: torch.Tensor


@attrs.frozen
class ObjectItem:
    """A plain object to be written."""

    key: str
    data: Any


@attrs.frozen
class Written:
    """What became of an item: plain data that travels between ranks. ``dtype`` is None for an object."""

    key: str
    file: str
    start: int
    length: int
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()
    box: Box | None = None


def write_items(
    path: Path, items: Iterable[TensorItem | ObjectItem], *, max_bytes: int = MAX_BYTES - 1
) -> list[Written]:
    """Write one ``.distcp`` file and flush it to the disk.

    A box of more than ``max_bytes`` is written as several.
    """
    written: list[Written] = []
    with path.open("xb") as stream:
        for item in items:
            for part in _parts(item, max_bytes):
                start = stream.tell()
                where = {"key": part.key, "file": path.name, "start": start}
                if isinstance(part, TensorItem):
                    write_tensor(stream, part.data.cpu().contiguous())
                    dtype, shape, box = part.data.dtype, part.shape, part.box
                    written.append(Written(**where, length=stream.tell() - start, dtype=dtype, shape=shape, box=box))
                else:
                    torch.save([part.data], stream)  # Megatron-core wraps an object in a list
                    written.append(Written(**where, length=stream.tell() - start))
        stream.flush()
        os.fsync(stream.fileno())
    return written


def write_nothings(path: Path, keys: Iterable[str]) -> list[Written]:
    """Write one None that stands under many keys."""
    keys = list(keys)
    (nothing,) = write_items(path, [ObjectItem("none", None)])
    return [attrs.evolve(nothing, key=key) for key in keys]


def write_index(folder: Path, written: Iterable[Written]) -> None:
    """Write the index over what all ranks wrote, once each tensor is found to be whole.

    Raises:
        CheckpointError: A tensor has an element that nobody, or more than one, wrote.
    """
    tensors: dict[str, list[Written]] = {}
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for part in written:
        if part.box is None:
            entries[part.key] = BytesStorageMetadata()
            storage[MetadataIndex(part.key)] = _StorageInfo(part.file, part.start, part.length)
        else:
            tensors.setdefault(part.key, []).append(part)
    for key, parts in tensors.items():
        check_whole(key, parts)
        chunks = [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)) for box in _boxes(parts)]
        assert parts[0].dtype is not None
        entries[key] = TensorStorageMetadata(TensorProperties(dtype=parts[0].dtype), torch.Size(parts[0].shape), chunks)
        for position, (part, box) in enumerate(zip(parts, _boxes(parts), strict=True)):
            storage[MetadataIndex(key, box.offset, position)] = _StorageInfo(part.file, part.start, part.length)
    index = Metadata(entries, storage_data=storage, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    write_file(folder / INDEX, pickle.dumps(index))


def write_frame(folder: Path, common: Mapping[str, Any]) -> None:
    """Write what makes a folder with an index a checkpoint of Megatron-core: the common state and the format's name."""
    stream = io.BytesIO()
    torch.save(dict(common), stream)
    write_file(folder / COMMON, stream.getvalue())
    form = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    write_file(folder / FORMAT, json.dumps(form).encode())


def check_whole(key: str, parts: list[Written]) -> None:
    """Raise unless parts agree on their tensor and tile it."""
    kinds = {(part.shape, part.dtype) for part in parts}
    if len(kinds) > 1:
        raise CheckpointError(f"tensor={key}: its parts disagree on what they are of: {sorted(map(str, kinds))}")
    if fault := tiling_fault(parts[0].shape, _boxes(parts)):
        raise CheckpointError(f"tensor={key}: {fault}")


def _parts(item: TensorItem | ObjectItem, max_bytes: int) -> Iterator[TensorItem | ObjectItem]:
    if isinstance(item, ObjectItem) or item.data.nbytes <= max_bytes:
        yield item
        return
    for box in cut(item.box, max_bytes // item.data.itemsize):
        yield attrs.evolve(item, box=box, data=item.data[slices(within(box, item.box))])


def _boxes(parts: Iterable[Written]) -> list[Box]:
    return [part.box for part in parts if part.box is not None]
