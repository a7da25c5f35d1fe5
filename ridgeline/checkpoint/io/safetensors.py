"""A safetensors file written tensor by tensor, none of them kept.

Source:
    huggingface/safetensors, README, "Format": a length, a JSON header, then the data, gapless and aligned to 8 bytes.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import attrs
import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.io.tensor_zip import tensor_bytes

DTYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
)


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


def write_safetensors(path: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor]) -> None:
    """Write a file and flush it to the disk.

    Args:
        path: Which must not exist.
        entries: What the tensors will be, in their order.
        tensors: Contiguous CPU tensors; each is asked for when the one before is written.
    """
    with path.open("xb") as stream:
        header = _header(entries)
        stream.write(len(header).to_bytes(8, "little"))
        stream.write(header)
        for entry, tensor in zip(entries, tensors, strict=True):
            assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), entry
            stream.write(tensor_bytes(tensor))
        stream.flush()
        os.fsync(stream.fileno())


def _header(entries: Sequence[Entry]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        offsets = [start, start + entry.bytes]
        table[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        start += entry.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
