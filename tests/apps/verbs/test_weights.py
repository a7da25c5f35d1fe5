"""``convert`` and ``inspect`` as a person types them: what they print, and their exit codes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.apps.cli import run
from tests.checkpoint.hf_models import random_model


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    random_model("Llama").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_convert_and_inspect(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A layout gives a file for each rank; inspecting it tells the layout back, and that nothing differs."""
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    layout = ["--layout.tp", "2", "--pp", "3"]
    assert run(["convert", str(hf), out, *layout, "--dry-run"]) == 0
    assert "6, by" not in capsys.readouterr().out
    assert not Path(out).exists()
    assert run(["convert", str(hf), out, *layout, "--verify"]) == 0
    assert "MB are as they were written" in capsys.readouterr().out
    assert run(["convert", str(hf), out, *layout]) == 0
    assert "already converted: nothing to do" in capsys.readouterr().err
    assert run(["inspect", out, "--against", str(hf), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["layout"], told["files"]) == ("classic", "tp=2 pp=3 stages=(1, 1, 1)", 6)
    assert (told["fault"], told["differences"], told["dtypes"][0][0]) == (None, [], "float32")
    assert run(["convert", out, back]) == 0
    assert run(["convert", back, "--verify"]) == 0
    assert run(["inspect", back, "--against", str(hf)]) == 0
    assert f"equal to {hf}" in capsys.readouterr().out


def test_differences_are_told(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every parameter that differs, by how much; and exit code 1."""
    other = tmp_path / "other"
    shutil.copytree(hf, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.25
    tensors["model.norm.weight"][7] = torch.nan
    save_file(tensors, other / "model.safetensors")
    assert run(["inspect", str(hf), "--against", str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  decoder.layers.1.mlp.linear_fc2.weight (48, 56): 2.500e-01" in lines
    assert "  decoder.final_layernorm.weight (48,): nan" in lines
    assert len([line for line in lines if line.startswith("  ")]) == 2


def test_bad_input(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is told in a sentence, with exit code 2, the source as it was and nothing new beside it."""
    file, good = hf / "model.safetensors", (hf / "model.safetensors").read_bytes()

    def told(*arguments: str, code: int = 2) -> str:
        before = sorted(path.name for path in tmp_path.iterdir())
        assert run([*arguments]) == code
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        captured = capsys.readouterr()
        return captured.out + captured.err

    out = str(tmp_path / "out")
    assert "output=None: is required, a folder to make" in told("convert", str(hf))
    assert "is no option of a conversion" in told("convert", str(hf), out, "--lr", "1e-3")
    assert "layout.tp=0" in told("convert", str(hf), out, "--tp", "0")
    assert "layout.tp=5: must divide heads=6" in told("convert", str(hf), out, "--tp", "5")
    assert "is no folder" in told("convert", str(tmp_path / "absent"), out)
    (tmp_path / "taken").mkdir()
    assert "taken: exists; remove it or name another" in told("convert", str(hf), str(tmp_path / "taken"))
    file.write_bytes(good[:-100])
    assert "model.safetensors: is damaged or cut short" in told("convert", str(hf), out)
    assert "model.safetensors: is damaged or cut short" in told("inspect", str(hf))
    file.unlink()
    assert "holds neither model.safetensors nor pytorch_model.bin" in told("convert", str(hf), out)
    (hf / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert "names files that are absent: model-00001-of-00002.safetensors" in told("convert", str(hf), out)
