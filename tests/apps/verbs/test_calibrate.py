"""``ridgeline calibrate``: constants and errors from a file of runs; every fault of it told at once."""

import json

import pytest

from ridgeline.apps.cli import run
from ridgeline.apps.reading import read_job
from ridgeline.core.codec import dumps, unstructure
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan

JOB = preset("llama2-7b", batch={"gbs": 64})


def outcome(capsys, *tokens):
    code = run(["calibrate", *map(str, tokens)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def file(tmp_path):
    """Two runs that took a tenth longer than planned."""
    (tmp_path / "job.toml").write_text(dumps(JOB, format="toml"))
    ms = plan(JOB).time.step_us / 1e3 * 1.1
    lines = [
        {"job": "job.toml", "step_ms": ms, "family": "a"},
        {"job": unstructure(JOB), "samples_per_s": 64 / ms * 1e3, "name": "again", "family": "b"},
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_constants_fit_the_runs_and_are_written_for_a_job_to_use(capsys, file):
    output = file.with_name("fitted.toml")
    code, out, err = outcome(capsys, file, "--fit", "gemm", "--fit", "memory", "--json", "--output", output)
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["chip"] == "910B2"
    assert [one["name"] for one in data["runs"]] == ["llama2-7b", "again"]
    assert data["runs"][0]["step_ms"] == pytest.approx(data["runs"][1]["step_ms"])
    assert data["errors"]["median"] <= data["errors"]["nine_in_ten"] < 1 - 1 / 1.1
    assert data["errors"]["median"] <= data["held_out_errors"]["median"]
    assert data["constants"]["gemm"]["fitted"] < data["constants"]["gemm"]["before"]
    whole = file.with_name("whole.toml")
    whole.write_text('model = "llama2-7b"\nbatch = {seq_len = 4096, gbs = 64}\n' + output.read_text())
    assert read_job(str(whole)).job.cluster.chip.efficiency.gemm == data["constants"]["gemm"]["fitted"]


def test_the_tables_tell_constants_runs_and_the_error_held_out(capsys, file):
    code, out, _ = outcome(capsys, file, "--fit", "gemm")
    assert code == 0
    for text in ("Constants of 910B2", "gemm", "again", "held out: half within", "nine in ten within"):
        assert text in out


def test_every_fault_is_told_at_once(capsys, tmp_path):
    path = tmp_path / "runs.jsonl"
    lines = [
        "{",
        '{"job": "none.toml", "step_ms": 1}',
        '{"job": {}, "mfu": -1, "step": 3}',
        '{"job": "a", "mfu": 1, "step_ms": 2}',
    ]
    path.write_text("\n".join(lines))
    code, _, err = outcome(capsys, path)
    assert code == 2
    for text in (
        "runs.jsonl:1.line='{': is not JSON",
        "runs.jsonl:2.file=",
        "runs.jsonl:3.step=3: unknown; did you mean 'step_ms'",
        "runs.jsonl:3.mfu=-1: must be a number > 0",
        "runs.jsonl:4.measure=('step_ms', 'mfu'): must be one; use step_ms",
    ):
        assert text in err


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (("--fit", "gem"), "--fit='gem': unknown constant; did you mean 'gemm'"),
        (("--chip", "910B3"), "--chip='910B3': no run was on it; use 910B2"),
    ],
)
def test_a_wrong_name_is_told(capsys, file, tokens, text):
    code, _, err = outcome(capsys, file, *tokens)
    assert code == 2
    assert text in err


def test_an_empty_file_is_told(capsys, tmp_path):
    (tmp_path / "runs.jsonl").write_text("\n")
    assert "holds no run" in outcome(capsys, tmp_path / "runs.jsonl")[2]
