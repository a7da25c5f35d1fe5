"""Files of ``torch.save``: plain data and tensors, read without running anything, and written tensor by tensor.

A pickle is read through a list of what plain data needs. A few classes that Megatron-LM's files mention besides are
read as an empty ``Foreign``: never imported, never called. Whatever else is asked for is refused.
"""

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.io.mapped import FileTensor, map_file
from ridgeline.checkpoint.io.safetensors import Entry, Stored
from ridgeline.checkpoint.io.tensor_zip import StoredTensor, Window, pickled, plain_record, tensor_bytes
from ridgeline.checkpoint.io.zip_stream import Record, write_zip
from ridgeline.core.errors import CheckpointError

FOREIGN = ("megatron.", "mindspeed", "numpy.", "_codecs.")
"""Packages whose classes are read as names: enumerations among a launch's arguments, arrays of random states."""

_PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch", "Size"): torch.Size,
    **{
        ("builtins", kind.__name__): kind
        for kind in (dict, list, tuple, set, frozenset, bytearray, complex, int, float)
    },
}


class Foreign:
    """An object of a class that is not ours to make; what it would hold is left out."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Made of anything."""

    def __setstate__(self, state: Any) -> None:
        """Filled with nothing."""


def read_torch_file(path: Path, within: Path) -> Any:
    """The object in a file, ``FileTensor`` standing for each tensor; no tensor is read yet.

    Raises:
        CheckpointError: It is damaged, of the format before torch 1.6, or asks for more than plain data and tensors.
    """
    mapped = map_file(path, within)
    try:
        with zipfile.ZipFile(Window(tensor_bytes(mapped))) as archive:
            names = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            compressed = [name for name, info in names.items() if info.compress_type != zipfile.ZIP_STORED]
            if compressed or "data.pkl" not in names:
                raise CheckpointError(f"holds {compressed[0] if compressed else 'no data.pkl'}, torch writes no such")
            places = {
                name.removeprefix("data/"): _place(mapped, info)
                for name, info in names.items()
                if name.startswith("data/")
            }
            return _Unpickler(io.BytesIO(archive.read(names["data.pkl"])), mapped, places).load()
    except zipfile.BadZipFile as error:
        rule, way_out = "is damaged, cut short, or of the format before torch 1.6", "fetch or write it again"
        raise CheckpointError(f"file={path}: {rule}: {error}; {way_out}") from error
    except CheckpointError as error:
        raise CheckpointError(f"file={path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"file={path}: is damaged: {type(error).__name__}: {error}") from error


def stream_torch_file(
    stream: BinaryIO, frame: Any, entries: Sequence[Entry], tensors: Iterable[Iterable[memoryview]]
) -> list[Stored]:
    """Write a file as ``torch.save`` does, its tensors in chunks.

    Args:
        stream: Seekable, at its start.
        frame: The object to save, with ``stored(entries)[i]`` wherever the tensor of entry ``i`` belongs.
        entries: The tensors.
        tensors: The bytes of each, in order.
    """
    chunks = iter(tensors)
    data = [Record(f"archive/data/{i}", entry.bytes, _next(chunks)) for i, entry in enumerate(entries)]
    head = plain_record("archive/data.pkl", pickled(frame)), plain_record("archive/byteorder", b"little")
    places = write_zip(stream, (*head, *data, plain_record("archive/version", b"3\n")))
    return [Stored(entry.name, entry.bytes, *places[f"archive/data/{i}"]) for i, entry in enumerate(entries)]


def stored(entries: Sequence[Entry]) -> list[StoredTensor]:
    """What stands for each tensor in the frame of ``stream_torch_file``."""
    return [StoredTensor(str(index), entry.dtype, entry.shape) for index, entry in enumerate(entries)]


def _next(chunks: Any) -> Iterable[memoryview]:
    yield from next(chunks)


def _place(mapped: torch.Tensor, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of a record begin, and how many there are."""
    lengths = mapped[info.header_offset + 26 : info.header_offset + 30].tolist()
    name, extra = lengths[0] | lengths[1] << 8, lengths[2] | lengths[3] << 8
    begin = info.header_offset + 30 + name + extra
    if begin + info.file_size > mapped.numel():
        raise CheckpointError(f"is cut short: {info.filename} would end at byte {begin + info.file_size}")
    return begin, info.file_size


@attrs.frozen
class _Storage:
    """The memory of one or more tensors, in the file."""

    data: torch.Tensor = attrs.field(repr=False)
    dtype: torch.dtype


class _Unpickler(pickle.Unpickler):
    """Builds plain data; everything else is a name or refused."""

    def __init__(self, stream: io.BytesIO, mapped: torch.Tensor, places: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(stream)
        self._mapped, self._places = mapped, places

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return _marked
        if (module, name) in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
            return FileTensor
        if module == "torch" and name.endswith("Storage"):
            return _storage_dtype(name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if f"{module}.".startswith(FOREIGN):
            return type(name, (Foreign,), {})
        raise CheckpointError(
            f"asks for {module}.{name}, which is neither a tensor nor plain data: refused, it could run code"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, count = pid
        begin, size = self._places[key]
        if size != count * dtype.itemsize:
            raise CheckpointError(f"is damaged: storage {key} has {size} bytes, expected {count * dtype.itemsize}")
        return _Storage(self._mapped[begin : begin + size], dtype)


def _storage_dtype(name: str) -> torch.dtype:
    for dtype, kind in torch.storage._dtype_to_storage_type_map().items():
        if kind == name:
            return dtype
    raise CheckpointError(f"asks for torch.{name}, which is no storage")


def _tensor(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any) -> FileTensor:
    """A tensor whose own strides, often not row-major, are followed whenever it is read."""
    shape, strides = tuple(shape), tuple(strides)
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    if (
        offset < 0
        or any(s < 0 for s in strides)
        or (0 not in shape and reach * storage.dtype.itemsize > len(storage.data))
    ):
        raise CheckpointError(f"is damaged: a tensor of shape {shape} lies outside of its storage")

    def strided(start: int, part: Shape, steps: Shape) -> torch.Tensor:
        raw = storage.data
        data = raw.clone() if raw.storage_offset() % storage.dtype.itemsize else raw
        flat = data.view(storage.dtype)
        whole = flat.as_strided(shape, strides, flat.storage_offset() + offset)
        if not whole.is_contiguous():
            whole = whole.contiguous()
        return whole.as_strided(part, steps, whole.storage_offset() + start)

    return FileTensor(storage.dtype, shape, strided)


def _parameter(data: FileTensor, *_: Any) -> FileTensor:
    return data


def _marked(rebuild: Any, kind: Any, arguments: tuple[Any, ...], marks: Any) -> FileTensor:
    """A tensor with attributes, as Megatron-core's masters are, without them."""
    if rebuild not in (_tensor, _parameter):
        raise CheckpointError(f"asks for a tensor made by {rebuild}: refused")
    return rebuild(*arguments)
