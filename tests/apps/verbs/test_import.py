"""``ridgeline import``: a script becomes a job file."""

import pytest

from ridgeline.apps.cli import run as cli
from ridgeline.apps.reading import read_job
from tests.models.scripts.launches import LLAMA2_7B


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "pretrain_llama2_7b.sh"
    path.write_text(LLAMA2_7B)
    return path


def test_the_job_file_is_read_again(script, tmp_path, capsys):
    """What is written is a job; a second time it is not overwritten."""
    output = tmp_path / "job.toml"
    assert cli(["import", str(script), "--output", str(output), "--layout.tp", "4"]) == 0
    assert read_job(str(output)).job.layout.tp == 4
    assert "no effect:" in capsys.readouterr().err
    before = output.read_bytes()
    assert cli(["import", str(script), "--output", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_faults_write_nothing(script, tmp_path, capsys):
    """All faults are told, with the variable and the way out, and no file is left."""
    output = tmp_path / "job.toml"
    script.write_text(LLAMA2_7B.replace("--vocab-size 32000", "").replace("NNODES=1", "").replace("PP=2", "PP=3"))
    assert cli(["import", str(script), "--output", str(output)]) == 2
    told = capsys.readouterr().err
    assert "launcher.nnodes='$NNODES'" in told
    assert "world_size=8: must be a multiple of" in told
    assert "give --model.vocab_size N" in told
    assert not output.exists()
    script.write_text(LLAMA2_7B.replace("NNODES=1", ""))
    assert cli(["import", str(script), "--set", "NNODES=4"]) == 0
    assert "nodes = 4" in capsys.readouterr().out


def test_what_is_no_script_is_named(tmp_path, capsys):
    """With what was looked for."""
    path = tmp_path / "notes.txt"
    path.write_bytes(bytes(range(256)))
    assert cli(["import", str(path)]) == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert "looked for torchrun" in told


def test_a_launch_that_cannot_run_is_told(script, capsys):
    """Upstream would refuse it: what is read is written, with the rules it breaks and the nearest layouts."""
    script.write_text(LLAMA2_7B.replace("--num-layers 32", "--num-layers 31"))
    assert cli(["import", str(script)]) == 0
    told = capsys.readouterr()
    assert "count = 31" in told.out
    assert "as it is, this job cannot be planned: 1\n  model.num_layers=31: does not split evenly" in told.err
    assert "nearest that are legal: layout.noop_layers=[31]" in told.err


def test_unknown_flags_are_told_beside_faults(script, capsys):
    script.write_text(LLAMA2_7B.replace("--bf16", "--bf16 --fp16 --sequence-paralel"))
    assert cli(["import", str(script)]) == 2
    told = capsys.readouterr().err
    assert "did the script mean --sequence-parallel?" in told
    assert "--bf16=True: contradicts --fp16" in told
