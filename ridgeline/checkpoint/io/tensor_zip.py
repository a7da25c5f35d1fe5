"""One tensor as the zip that ``torch.save`` writes, at the speed of the disk, and back without a copy.

``torch.load(weights_only=True)`` reads what ``write_tensor`` wrote. torch's own writer takes ten times as
long, most of it for its checksum; zlib computes the same CRC-32, and ``find_tensor`` checks it, as torch does not.

Source:
    PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (its end); torch 2.13,
    ``torch/serialization.py``, ``_save``.
"""

import io
import math
import pickle
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, BinaryIO

import attrs
import torch
from torch._utils import _rebuild_tensor_v2

from ridgeline.checkpoint.io.zip_stream import Place, Record, write_zip
from ridgeline.checkpoint.pieces import row_major
from ridgeline.core.errors import CheckpointError

MAX_BYTES = 1 << 31
"""Below this a zip needs none of its 64-bit records; a larger tensor is stored as several boxes."""

_LOCAL = struct.Struct("<IHHHHHIIIHH")


def write_tensor(stream: BinaryIO, tensor: torch.Tensor) -> None:
    """Append a contiguous CPU tensor of under ``MAX_BYTES`` to a stream; its data is aligned if the stream's end is."""
    assert tensor.is_contiguous()
    write_chunks(stream, dtype=tensor.dtype, shape=tuple(tensor.shape), chunks=(tensor_bytes(tensor),))


def write_chunks(
    stream: BinaryIO, *, dtype: torch.dtype, shape: tuple[int, ...], chunks: Iterable[memoryview]
) -> Place:
    """The same of a tensor whose bytes come in chunks; where those stand."""
    size = dtype.itemsize * math.prod(shape)
    assert size < MAX_BYTES
    places = write_zip(
        stream,
        (
            plain_record("archive/data.pkl", pickled(StoredTensor("0", dtype, shape))),
            plain_record("archive/byteorder", sys.byteorder.encode()),
            Record("archive/data/0", size, chunks),
            plain_record("archive/version", b"3\n"),
        ),
    )
    return places["archive/data/0"]


def plain_record(name: str, data: bytes) -> Record:
    """A record whose bytes are at hand."""
    return Record(name, len(data), (data,))


def find_tensor(
    mapped: torch.Tensor, *, start: int, length: int, dtype: torch.dtype, shape: tuple[int, ...], verify: bool = True
) -> torch.Tensor:
    """A saved tensor inside a mapped file; no copy where its alignment allows.

    Args:
        mapped: The whole file: (bytes,), uint8.
        start: Where the zip begins.
        length: Bytes of the zip.
        dtype: What the index says it holds.
        shape: The same.
        verify: Whether to compare its checksum, which reads all of it.

    Raises:
        CheckpointError: The bytes are not such a tensor, or damaged.
    """
    window = tensor_bytes(mapped[start : start + length])
    try:
        with zipfile.ZipFile(Window(window)) as archive:
            data = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
    except (zipfile.BadZipFile, StopIteration, OSError, struct.error) as error:
        raise CheckpointError(f"no tensor stands at byte {start}: {error or 'it holds no data'}") from error
    *_, name_length, extra_length = _LOCAL.unpack_from(window, data.header_offset)
    begin = data.header_offset + _LOCAL.size + name_length + extra_length
    expected = dtype.itemsize * torch.Size(shape).numel()
    if data.compress_type != zipfile.ZIP_STORED or data.file_size != expected or begin + expected > length:
        raise CheckpointError(
            f"the tensor at byte {start} holds {data.file_size} bytes, expected {expected} for {dtype} {shape}"
        )
    if verify and (found := zlib.crc32(window[begin : begin + expected])) != data.CRC:
        raise CheckpointError(
            f"the tensor at byte {start} is damaged: its CRC-32 is {found:08x}, expected {data.CRC:08x}"
        )
    raw = mapped[start + begin : start + begin + expected]
    if raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, seen as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def pickled(value: Any) -> bytes:
    """A value as ``torch.save`` pickles it, ``StoredTensor`` standing for tensors."""
    stream = io.BytesIO()
    _TensorPickler(stream, protocol=2).dump(value)
    return stream.getvalue()


@attrs.frozen
class StoredTensor:
    """Pickles as a contiguous tensor that alone fills the storage of this key, ``data/KEY`` of the zip."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _rebuild_tensor_v2, (_StorageOf(self), 0, self.shape, row_major(self.shape), False, OrderedDict())


@attrs.frozen
class _StorageOf:
    tensor: StoredTensor


class _TensorPickler(pickle.Pickler):
    """torch's form: the storage is named, and its bytes stand elsewhere."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _StorageOf):
            kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[obj.tensor.dtype])
            return ("storage", kind, obj.tensor.key, "cpu", math.prod(obj.tensor.shape))
        return None


class Window(io.RawIOBase):
    """A file over memory that is not copied until it is read."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._position = view, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = len(self._view) if size is None or size < 0 else self._position + size
        data = bytes(self._view[self._position : stop])
        self._position += len(data)
        return data
