"""Zips whose sizes and positions take 64 bits, as files of ranks of over 4 GB have them: Python and torch read ours."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from ridgeline.checkpoint.io import zip_stream
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.safetensors import Entry
from ridgeline.checkpoint.io.tensor_zip import tensor_bytes
from ridgeline.checkpoint.io.torch_file import read_torch_file, stored, stream_torch_file
from ridgeline.checkpoint.io.zip_stream import Record, write_zip
from ridgeline.checkpoint.pieces import row_major


@pytest.fixture(params=[zip_stream.LARGE, 1000, 100, 1])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """From which size on a zip takes 64 bits."""
    monkeypatch.setattr(zip_stream, "LARGE", request.param)
    return request.param


def test_python_reads_ours(large: int) -> None:
    """Every record is there, aligned, with the checksum that was told, wherever the zip begins."""
    records = {"a": b"x" * 10, "empty": b"", "long": bytes(range(256)) * 9, "z/y": b"1"}
    stream = io.BytesIO()
    places = write_zip(stream, [Record(name, len(data), (data[:3], data[3:])) for name, data in records.items()])
    with zipfile.ZipFile(stream) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == records
        for info in archive.infolist():
            assert places[info.filename].crc32 == info.CRC
            assert places[info.filename].start % zip_stream.ALIGNMENT == 0


def test_torch_reads_ours_and_we_do(large: int, tmp_path: Path) -> None:
    """A file of several tensors in a frame of plain data, both ways."""
    tensors = {"w": torch.randn(30, 7), "b": torch.arange(5).half(), "none": torch.zeros(0, 3)}
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    frame = {"model": dict(zip(tensors, stored(entries), strict=True)), "iteration": 3}
    with (tmp_path / "x.pt").open("wb") as stream:
        stream_torch_file(stream, frame, entries, ((tensor_bytes(tensor),) for tensor in tensors.values()))
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    ours = read_torch_file(tmp_path / "x.pt", tmp_path)
    assert (loaded["iteration"], ours["iteration"]) == (3, 3)
    for name, tensor in tensors.items():
        found = ours["model"][name]
        assert isinstance(found, FileTensor)
        assert torch.equal(loaded["model"][name], tensor)
        assert torch.equal(found.strided(0, found.shape, row_major(found.shape)), tensor)
