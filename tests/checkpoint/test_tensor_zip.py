"""Single tensors as zips: torch reads ours, we read torch's, and damage is seen."""

import io
from pathlib import Path

import pytest
import torch

from ridgeline.checkpoint.io.tensor_zip import find_tensor, write_tensor
from ridgeline.core.errors import CheckpointError

TENSORS = [
    torch.arange(15, dtype=torch.float32).reshape(3, 5),
    torch.randn(7, 2, 3).bfloat16(),
    torch.tensor(3.5),
    torch.arange(10, dtype=torch.uint8),
    torch.zeros(0, 4),
    torch.arange(20, dtype=torch.int64).reshape(5, 4)[2:4],
]


def mapped(data: bytes, path: Path) -> torch.Tensor:
    path.write_bytes(data)
    return torch.from_file(str(path), shared=False, size=len(data), dtype=torch.uint8)


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}")
def test_torch_reads_ours(tensor: torch.Tensor) -> None:
    """torch.load gives back the tensor, with its safe unpickler."""
    stream = io.BytesIO()
    write_tensor(stream, tensor)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=True)
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded, tensor)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}")
def test_we_read_both(tensor: torch.Tensor, ours: bool, tmp_path: Path) -> None:
    """A tensor is found at any place of a file, whoever wrote it."""
    stream = io.BytesIO()
    stream.write(b"x" * 13)
    if ours:
        write_tensor(stream, tensor)
    else:
        torch.save(tensor.clone(), stream)
    length = stream.tell() - 13
    stream.write(b"y" * 9)

    found = find_tensor(
        mapped(stream.getvalue(), tmp_path / "f"),
        start=13,
        length=length,
        dtype=tensor.dtype,
        shape=tuple(tensor.shape),
    )

    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


def test_our_reading_copies_nothing(tmp_path: Path) -> None:
    """An aligned tensor is a view of the mapped file."""
    stream = io.BytesIO()
    write_tensor(stream, TENSORS[0])
    file = mapped(stream.getvalue(), tmp_path / "f")
    found = find_tensor(file, start=0, length=len(file), dtype=torch.float32, shape=(3, 5))
    assert found.untyped_storage().data_ptr() == file.untyped_storage().data_ptr()


def test_damage_is_seen(tmp_path: Path) -> None:
    """A flipped bit in the data, a wrong shape and a missing end each give an error that says what was expected."""
    stream = io.BytesIO()
    write_tensor(stream, TENSORS[0])
    good = stream.getvalue()
    at = good.index(TENSORS[0].numpy().tobytes())
    flipped = mapped(good[: at + 5] + bytes([good[at + 5] ^ 1]) + good[at + 6 :], tmp_path / "flipped")
    cut = mapped(good[:-30], tmp_path / "cut")

    with pytest.raises(CheckpointError, match=r"damaged: its CRC-32 is \w{8}, expected \w{8}"):
        find_tensor(flipped, start=0, length=len(good), dtype=torch.float32, shape=(3, 5))
    with pytest.raises(CheckpointError, match=r"holds 60 bytes, expected 64 for torch.float32 \(4, 4\)"):
        find_tensor(mapped(good, tmp_path / "good"), start=0, length=len(good), dtype=torch.float32, shape=(4, 4))
    with pytest.raises(CheckpointError, match="no tensor stands at byte 0"):
        find_tensor(cut, start=0, length=len(cut), dtype=torch.float32, shape=(3, 5))
