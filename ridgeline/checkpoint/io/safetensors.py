"""The safetensors format: a header that is believed only where it is true, and files written chunk by chunk.

Source:
    huggingface/safetensors, README, "Format": a length, a JSON header, then the data, gapless and aligned to 8 bytes.
"""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import attrs
import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.io.json_file import parse_json
from ridgeline.checkpoint.io.mapped import FileTensor, map_file, tensor_at
from ridgeline.checkpoint.io.tensor_zip import tensor_bytes
from ridgeline.core.errors import CheckpointError

DTYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.float32: "F32",
        torch.float64: "F64",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.uint8: "U8",
        torch.int8: "I8",
        torch.int16: "I16",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.bool: "BOOL",
    }
)
ENTRY = frozenset(("dtype", "shape", "data_offsets"))
"""What a header says of each tensor."""
MAX_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""


@attrs.frozen
class Entry:
    """A tensor to come."""

    name: str
    dtype: torch.dtype
    shape: Shape

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@attrs.frozen
class Stored:
    """A tensor that was written.

    Attributes:
        name: Of it.
        bytes: How many.
        start: Where in its file they begin.
        crc32: Of them.
        span: Where the record around them begins and how long it is, in formats that have one.
    """

    name: str
    bytes: int
    start: int
    crc32: int
    span: tuple[int, int] | None = None


def read_safetensors(path: Path, within: Path) -> dict[str, FileTensor]:
    """The tensors of a file, by name; nothing of them is read yet.

    Raises:
        CheckpointError: The header lies: about its length, a dtype, a shape, or where data stands, or it names a tensor
            twice. Or the file is cut short, or longer than its tensors.
    """
    mapped = map_file(path, within)
    try:
        return _tensors(mapped)
    except ValueError as error:
        raise CheckpointError(f"file={path}: is damaged or cut short: {error}; fetch or write it again") from error


def write_safetensors(path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor]) -> None:
    """Write a file and flush it to the disk.

    Args:
        path: Which must not exist.
        entries: What the tensors will be, in their order.
        tensors: Contiguous CPU tensors; each is asked for when the one before is written.
    """
    with path.open("xb") as stream:
        stream_safetensors(stream, entries, (_chunks(e, t) for e, t in zip(entries, tensors, strict=True)))
        stream.flush()
        os.fsync(stream.fileno())


def stream_safetensors(
    stream: BinaryIO, entries: Sequence[Entry], tensors: Iterable[Iterable[memoryview]]
) -> list[Stored]:
    """Write a file whose tensors come in chunks, in the order of their entries."""
    header = header_of(entries)
    stream.write(len(header).to_bytes(8, "little"))
    stream.write(header)
    written = []
    for entry, chunks in zip(entries, tensors, strict=True):
        start, checksum = stream.tell(), 0
        for chunk in chunks:
            checksum = zlib.crc32(chunk, checksum)
            stream.write(chunk)
        assert stream.tell() - start == entry.bytes, entry
        written.append(Stored(entry.name, entry.bytes, start, checksum))
    return written


def _chunks(entry: Entry, tensor: torch.Tensor) -> tuple[memoryview]:
    assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), entry
    return (tensor_bytes(tensor),)


def _tensors(mapped: torch.Tensor) -> dict[str, FileTensor]:
    size = mapped.numel()
    length = int.from_bytes(bytes(mapped[:8].tolist()), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"its header would be {length} bytes of {size}")
    table = parse_json(tensor_bytes(mapped[8 : 8 + length]).tobytes())
    begin, words = 8 + length, {word: dtype for dtype, word in DTYPES.items()}
    tensors, spans = {}, []
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or not entry.keys() >= ENTRY:
            raise ValueError(f"{name} is not told by {', '.join(sorted(ENTRY))}")
        if str(entry["dtype"]) not in words:
            raise ValueError(f"{name} is of dtype {entry['dtype']}; known: {', '.join(words)}")
        dtype, shape = words[entry["dtype"]], _shape(name, entry["shape"])
        first, last = _span(name, entry["data_offsets"], dtype.itemsize * math.prod(shape), size - begin)
        spans.append((first, last, name))
        tensors[name] = tensor_at(mapped, start=begin + first, dtype=dtype, shape=shape)
    _check_gapless(spans, size - begin)
    return tensors


def _shape(name: str, shape: Any) -> Shape:
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise ValueError(f"{name} is of shape {shape}")
    return tuple(shape)


def _span(name: str, offsets: Any, expected: int, available: int) -> tuple[int, int]:
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise ValueError(f"{name} lies at {offsets}")
    first, last = offsets
    if not 0 <= first <= last:
        raise ValueError(f"{name} lies at {offsets}")
    if last > available:
        raise ValueError(f"{name} would end at byte {last} of {available}")
    if last - first != expected:
        raise ValueError(f"{name} has {last - first} bytes, its shape and dtype need {expected}")
    return first, last


def _check_gapless(spans: list[tuple[int, int, str]], available: int) -> None:
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise ValueError(f"{name} begins at byte {first}, the one before ends at {end}")
        end = last
    if end != available:
        raise ValueError(f"its tensors end at byte {end} of {available}")


def header_of(entries: Sequence[Entry]) -> bytes:
    """The header of a file of these tensors, in this order."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        offsets = [start, start + entry.bytes]
        table[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        start += entry.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
