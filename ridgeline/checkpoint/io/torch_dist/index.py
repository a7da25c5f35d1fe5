"""The folder format of torch's distributed checkpoints, Megatron-core's ``torch_dist``, and its index.

    .metadata        an index: every tensor's shape and dtype, and in which file each of its boxes lies
    __R_0.distcp     what rank R wrote, one zip after another
    common.pt        what is the same for all ranks
    metadata.json    the format's name, for Megatron-core

``.metadata`` is a pickle, the format has it so. It is read through an allow-list of torch's own index classes; a file
that asks for anything else is refused.
"""

import enum
import importlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo  # the format has no public name for it
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from ridgeline.checkpoint.boxes import Box
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
