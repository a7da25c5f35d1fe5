"""``ridgeline compare``: its numbers are those of the two plans."""

import json

import pytest

from ridgeline.apps.cli import run
from ridgeline.apps.reports.comparison import figures_of
from ridgeline.core.transforms import recompute, with_layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan

JOB = preset("llama2-7b")


def outcome(capsys, *tokens):
    code = run(tokens)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_parts_are_those_of_each_plan():
    """Memory adds up to the fullest rank's, time to the step, on both sides, also where one side lacks a part."""
    left, right = plan(with_layout(tp=1, sp=False, pp=4)(JOB)), plan(recompute("full")(JOB))
    figures = tuple(figures_of(left, right))
    for side, planned in (("left", left), ("right", right)):
        values = {(figure.section, figure.name): getattr(figure, side) for figure in figures}
        memory = [value for (section, name), value in values.items() if section == "memory" and name != "of"]
        assert sum(memory[:-1]) == pytest.approx(memory[-1]) == planned.peak.total_bytes / 2**30
        times = [value for (section, _), value in values.items() if section == "time"]
        assert sum(times) == pytest.approx(values["step", "step"]) == planned.time.step_us / 1e3
        assert values["step", "tokens"] == planned.time.tokens_per_s
    names = {figure.name for figure in figures}
    assert {"recomputed forwards", "pipeline bubble"} <= names


def test_fields_and_figures_as_json(capsys, tmp_path):
    """A changed field is named with both its values; each figure has both its numbers."""
    code, out, _ = outcome(capsys, "compare", "llama2-7b", "llama2-13b", "--json")
    data = json.loads(out)
    assert code == 0
    assert {"path": "model.hidden", "left": 4096, "right": 5120} in data["changes"]
    (step,) = [row for row in data["figures"] if row["name"] == "step"]
    assert step["left"] == pytest.approx(plan(JOB).time.step_us / 1e3)
    assert step["right"] == pytest.approx(plan(preset("llama2-13b")).time.step_us / 1e3)


def test_options_are_of_both(capsys):
    code, out, _ = outcome(capsys, "compare", "llama2-7b", "qwen2.5-7b", "--seq-len", "2048", "--json")
    assert code == 0
    assert not any(change["path"] == "batch.seq_len" for change in json.loads(out)["changes"])


def test_as_a_table(capsys):
    code, out, _ = outcome(capsys, "compare", "llama2-7b", "llama2-13b")
    assert code == 0
    assert "model.hidden: 4096 -> 5120" in out
    assert "activations" in out
    assert "MFU, full attention" in out


def test_a_file_is_named_as_it_is(capsys, tmp_path, monkeypatch):
    """Brackets in a file's name are no markup."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[red].toml").write_text(
        'model = "llama2-7b"\ncluster = "atlas-800t-a2"\n[batch]\nseq_len = 2048\ngbs = 8\n'
    )
    code, out, _ = outcome(capsys, "compare", "llama2-7b", "a[red].toml")
    assert code == 0
    assert "a[red].toml" in out


def test_equal_jobs(capsys):
    assert outcome(capsys, "compare", "llama2-7b", "llama2-7b") == (0, "The jobs are equal.\n", "")


def test_a_bad_job_is_told(capsys):
    code, out, err = outcome(capsys, "compare", "llama2-7b", "llama2-8b")
    assert (code, out) == (2, "")
    assert "llama2-8b: job='llama2-8b': is no preset" in err


def test_faults_of_both_jobs_are_told(capsys, tmp_path):
    """At once, each with the name of its job."""
    file = tmp_path / "job.toml"
    file.write_text('model = "llama2-7b"\ncluster = "atlas-800t-a2"\n[batch]\nseq_len = 2048\ngbs = 7\n')
    code, out, err = outcome(capsys, "compare", "llama2-70b", str(file), "--tp", "3")
    assert (code, out) == (2, "")
    assert "llama2-70b: layout.tp=3: must divide heads=64" in err
    assert f"{file}: layout.tp=3: must divide heads=32" in err
