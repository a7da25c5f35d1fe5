"""The folder format of torch's distributed checkpoints, Megatron-core's ``torch_dist``, read and written without ranks.

    .metadata        an index: every tensor's shape and dtype, and in which file each of its boxes lies
    __R_0.distcp     what rank R wrote, one zip after another
    common.pt        what is the same for all ranks
    metadata.json    the format's name, for Megatron-core

``.metadata`` is a pickle, the format has it so. It is read through an allow-list of torch's own index classes; a file
that asks for anything else is refused, and so is every object in the other files that is not a tensor or plain data.
"""

import enum
import importlib
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

from ridgeline.checkpoint.boxes import Box, cut, meeting, slices, tiling_fault, within
from ridgeline.checkpoint.io.folders import write_file
from ridgeline.checkpoint.io.tensor_zip import MAX_BYTES, find_tensor, write_tensor
from ridgeline.core.errors import CheckpointError

INDEX = ".metadata"
COMMON = "common.pt"
FORMAT = "metadata.json"
NOTHINGS = "__none.distcp"

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    # Megatron-core attaches every rank's plan to its index.
    "torch.distributed.checkpoint.planner": (
        "BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType",
    ),
    "megatron.core.dist_checkpointing.strategies.torch": ("MCoreMetadata", "MCoreSavePlan"),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
}  # fmt: skip
"""All that an index may name, besides the dtypes of torch."""


@attrs.frozen
class Chunk:
    """Where one box of a tensor is stored."""

    box: Box
    file: str
    start: int
    length: int


@attrs.frozen
class StoredTensor:
    """One tensor of a checkpoint; ``shape`` is the global one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


@attrs.frozen
class StoredObject:
    """Where one object that is no tensor is stored."""

    file: str
    start: int
    length: int


@attrs.frozen
class Index:
    """All that a checkpoint folder holds, by key."""

    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, StoredObject]


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


def read_index(folder: Path) -> Index:
    """Read the index of a checkpoint.

    Raises:
        CheckpointError: There is none, it is damaged, or it asks for code that has no place in an index.
    """
    path = folder / INDEX
    try:
        metadata = _IndexUnpickler(io.BytesIO(path.read_bytes())).load()
        return _index_of(metadata)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint={folder}: has no {INDEX}; name the folder of one saved step") from error
    except CheckpointError as error:
        raise CheckpointError(f"file={path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"file={path}: is damaged: {type(error).__name__}: {error}") from error


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
        CheckpointError: As of ``read_index``.
    """
    return Reader(folder, read_index(folder))


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
        raise CheckpointError(f"file={reader.folder / stored.file}: {key} is damaged or holds code: {error}") from error
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
        raise CheckpointError(f"file={path}: is missing, damaged or holds code: {error}") from error


def stored_tensor(reader: Reader, key: str) -> StoredTensor:
    """What the index says of a tensor.

    Raises:
        CheckpointError: The checkpoint holds none of this key.
    """
    stored = reader.index.tensors.get(key)
    if stored is None:
        raise CheckpointError(f"checkpoint={reader.folder}: holds no tensor {key}")
    return stored


class _IndexUnpickler(pickle.Unpickler):
    """Reads an index, and nothing that could do anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise _refusal(f"{module}.{name}")


def _member(kind: Any, name: str) -> Any:
    """A member of an enumeration, as Python 3.11.0 to 3.11.3 pickle it: ``getattr(kind, name)``."""
    if isinstance(kind, enum.EnumMeta) and name in kind.__members__:
        return kind.__members__[name]
    raise _refusal(f"attribute {name} of {kind}")


def _refusal(asked_for: str) -> CheckpointError:
    return CheckpointError(f"asks for {asked_for}, which no index needs: refused, it could run code")


def _index_of(metadata: Metadata) -> Index:
    storage: dict[Any, _StorageInfo] = metadata.storage_data
    tensors: dict[str, StoredTensor] = {}
    objects: dict[str, StoredObject] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            place = storage[MetadataIndex(key)]
            objects[key] = StoredObject(_file_name(place.relative_path), place.offset, place.length)
            continue
        chunks = []
        for chunk in entry.chunks:
            place = storage[MetadataIndex(key, chunk.offsets)]
            box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
            chunks.append(Chunk(box, _file_name(place.relative_path), place.offset, place.length))
        tensors[key] = StoredTensor(tuple(entry.size), entry.properties.dtype, tuple(chunks))
    return Index(tensors, objects)


def _file_name(name: str) -> str:
    if Path(name).name != name:
        raise CheckpointError(f"names the file {name!r}, which lies outside of the checkpoint: refused")
    return name


def _parts(item: TensorItem | ObjectItem, max_bytes: int) -> Iterator[TensorItem | ObjectItem]:
    if isinstance(item, ObjectItem) or item.data.nbytes <= max_bytes:
        yield item
        return
    for box in cut(item.box, max_bytes // item.data.itemsize):
        yield attrs.evolve(item, box=box, data=item.data[slices(within(box, item.box))])


def _boxes(parts: Iterable[Written]) -> list[Box]:
    return [part.box for part in parts if part.box is not None]


def chunk_data(reader: Reader, key: str, chunk: Chunk) -> torch.Tensor:
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
        if not path.is_file():
            raise CheckpointError(f"file={path}: is missing; {INDEX} names it")
        size = path.stat().st_size
        reader.files[name] = (
            torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0)
        )
    if (size := reader.files[name].numel()) < needed:
        raise CheckpointError(f"file={path}: is cut short: it holds {size} bytes, expected at least {needed}")
    return reader.files[name]
