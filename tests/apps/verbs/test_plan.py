"""``ridgeline plan``: the report and its numbers."""

import json
import subprocess
import sys

import pytest

from ridgeline.apps.cli import run as cli
from ridgeline.apps.reading import read_job
from ridgeline.core.codec import structure
from ridgeline.core.job import Job
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan

TOKENS = ["qwen2.5-7b", "--layout.tp", "2", "--pp", "2", "--layout.vpp=2", "--gbs", "16"]


@pytest.fixture(scope="module")
def planned():
    return plan(read_job(TOKENS[0], TOKENS[1:]).job)


def report_of(capsys, *tokens):
    assert cli(["plan", *tokens]) == 0
    return capsys.readouterr().out


def test_the_report_says_everything(capsys, planned):
    """A row for each rank, part of the time, collective and kernel; all warnings and assumptions; the drawing."""
    text = report_of(capsys, *TOKENS)
    flat = " ".join(text.split())
    for sentence in (*planned.warnings, *planned.assumptions):
        assert " ".join(sentence.split()) in flat
    for rank in planned.memory:
        assert f"{rank.total_bytes / 2**30:.2f}" in text
    for _, part_us in planned.time.parts:
        assert f"{part_us / 1e3:,.1f}" in text
    for row in planned.collectives:
        assert row.why in text
    for choice in planned.kernels:
        assert choice.reason in text
    assert "0F0" in text
    assert "3B0" in text
    assert f"of {planned.job.cluster.chip.cube_flops / 1e12:.1f} TFLOP/s" in text
    assert f"MFU {planned.time.mfu_full:.1%}" in text


def test_what_the_preset_chose_is_said(capsys):
    """And a job file, which leaves nothing to choose, has no such part."""
    assert "Chosen for this preset" in report_of(capsys, "qwen2.5-7b")
    assert "batch.gbs=64: 16 microbatches" in report_of(capsys, "qwen2.5-7b")


def test_json_holds_the_job_and_the_numbers(capsys, planned):
    """Machines read the same plan: the job comes back whole."""
    data = json.loads(report_of(capsys, *TOKENS, "--json"))
    assert structure(data["job"], Job) == planned.job
    assert data["time"]["step_us"] == planned.time.step_us
    assert [rank["total_bytes"] for rank in data["memory"]] == [rank.total_bytes for rank in planned.memory]
    assert any(note.startswith("batch.seq_len=4096") for note in data["chosen"])
    assert data["warnings"] == list(planned.warnings)


def test_a_job_file_is_planned_as_written(capsys, tmp_path):
    """A file and options on top of it."""
    file = tmp_path / "job.toml"
    file.write_text('model = "qwen2.5-7b"\ncluster = "atlas-800t-a2"\n[batch]\nseq_len = 2048\ngbs = 8\n')
    text = report_of(capsys, str(file), "--tp", "4")
    assert "tp=4 dp=2 pp=1" in text
    assert "Chosen" not in text
    data = json.loads(report_of(capsys, str(file), "--json"))
    assert data["job"]["layout"]["tp"] == 1
    assert data["chosen"] == []


def test_a_model_folder_is_planned_like_a_preset(capsys, tmp_path):
    """A Hugging Face config.json is enough."""
    from ridgeline.models.hf_config import hf_config_of

    (tmp_path / "config.json").write_text(json.dumps(hf_config_of(preset("qwen3-0.6b").model)))
    text = report_of(capsys, str(tmp_path))
    assert f"{tmp_path.name}: 28 layers, 0.60B parameters" in text
    assert "Chosen for this preset" in text


def test_an_impossible_layout_is_told_with_the_nearest(capsys):
    """Which rules it breaks, and layouts that break none, by all verbs that plan."""
    for verb in (["plan"], ["launch"], ["compare", "qwen2.5-7b"]):
        assert cli([*verb, "qwen2.5-7b", "--tp", "3"]) == 2
        told = capsys.readouterr().err
        assert "layout.tp=3: must divide heads=28; use 1, 2 or 4" in told
        assert "layout='tp=3': is impossible; nearest that are legal: layout.tp=4 | layout.tp=2" in told
        assert cli([*verb, "qwen2.5-7b", "--optimizer.warmup-steps", "5000"]) == 2
        assert "nearest that are legal" not in capsys.readouterr().err


def test_a_rank_of_a_large_job_is_verified_here():
    """One line that says what was compared; a rank that does not exist is refused."""
    command = [sys.executable, "-m", "ridgeline", "plan", "qwen3-0.6b", "--nodes", "64", "--tp", "2", "--verify-rank"]
    run = subprocess.run([*command, "300"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("rank 300 of 512, RankCoords(tp_rank=0, cp_rank=0, dp_rank=150, pp_rank=0): ")
    assert run.stdout.endswith("all names and shapes are as planned\n")
    assert cli(["plan", "qwen3-0.6b", "--verify-rank", "8"]) == 2
