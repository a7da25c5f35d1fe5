"""Sources that lie, lead elsewhere or hold code: each is named and refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.checkpoint.io.convert import Wanted, export_hf, plan_conversion
from ridgeline.checkpoint.io.open_source import open_source
from ridgeline.core.errors import CheckpointError
from tests.checkpoint.conversions import made, model_of


def edited(folder: Path, out: Path, change: str) -> Path:
    """A copy of a folder in one file, its header changed."""
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    save_file(tensors, out / "model.safetensors")
    data = (out / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    match change:
        case "dtype":
            header[first]["dtype"] = "F16"
        case "shape":
            header[first]["shape"][0] *= 2
        case "beyond":
            header[first]["data_offsets"][1] += len(body)
        case "overlap":
            header[second]["data_offsets"], header[second]["shape"] = (
                header[first]["data_offsets"],
                header[first]["shape"],
            )
        case "negative":
            header[first]["shape"] = [-1, *header[first]["shape"][1:]]
        case "unknown":
            header[first]["dtype"] = "F3"
        case "tail":
            body += b"0" * 8
        case "cut":
            body = body[:-8]
    text = json.dumps(header).encode()
    size = 10**15 if change == "length" else len(text)
    (out / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + body)
    return out


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("dtype", r"\S+ has \d+ bytes, its shape and dtype need \d+"),
        ("shape", r"\S+ has \d+ bytes, its shape and dtype need \d+"),
        ("beyond", r"\S+ would end at byte \d+ of \d+"),
        ("overlap", r"\S+ begins at byte \d+, the one before ends at \d+"),
        ("negative", r"\S+ is of shape \[-1"),
        ("unknown", r"\S+ is of dtype F3; known: BF16"),
        ("tail", r"its tensors end at byte \d+ of \d+"),
        ("cut", r"\S+ would end at byte \d+ of \d+"),
        ("length", r"its header would be 10{15} bytes of \d+"),
    ],
)
def test_headers_that_lie(folders: dict[str, Path], tmp_path: Path, change: str, rule: str) -> None:
    """Each lie is told with the file and the tensor, and nothing is written."""
    source = edited(folders["Llama"], tmp_path / "source", change)
    with pytest.raises(CheckpointError, match=f"model.safetensors: is damaged or cut short: {rule}"):
        export_hf(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_links(folders: dict[str, Path], tmp_path: Path) -> None:
    """A link out of the folder is refused; into the blobs of a Hugging Face cache it is followed."""
    cache = tmp_path / "hub"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    source = edited(folders["Llama"], cache / "snapshots" / "1", "none")
    file = source / "model.safetensors"
    shutil.move(file, cache / "blobs" / "abc")
    file.symlink_to("../../blobs/abc")
    made(source, tmp_path / "out", Wanted(format="hf"))
    file.unlink()
    shutil.move(cache / "blobs" / "abc", tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model.safetensors: is a link to \S+elsewhere, out of \S+: refused"):
        plan_conversion(source, Wanted(format="hf"))


def test_a_foreign_index_that_names_more_than_is_there(folders: dict[str, Path], tmp_path: Path) -> None:
    """Without a record of files' sizes, as Megatron-LM's own, it is the index that each file is held against."""
    out = made(folders["Llama"], tmp_path / "out", Wanted(format="torch_dist"))
    (out / "ridgeline.json").unlink()
    model, file = model_of(folders["Llama"]), out / "__0_0.distcp"
    assert open_source(out, model=model).tensors
    os.truncate(file, size := file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=rf"__0_0.distcp: is cut short: it holds {size} bytes, expected at least"):
        open_source(out, model=model)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0.distcp: is missing; .metadata names it"):
        open_source(out, model=model)


class Evil:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo evil",)


def test_pickles_are_not_run(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A classic file that asks for code is refused, and says for what; one that is no zip is told apart."""
    out = made(folders["Llama"], tmp_path / "out", Wanted(format="classic"))
    path = out / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
    torch.save({"model": {"a": Evil()}}, path)
    with pytest.raises(
        CheckpointError, match=r"asks for posix.system, which is neither a tensor nor plain data: refused"
    ):
        open_source(out)
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match="is damaged, cut short, or of the format before torch"):
        open_source(out)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged or cut short: it is empty"):
        open_source(out)
    assert "evil\n" not in capfd.readouterr().out
