"""``ridgeline search``: axes as options, and a job file of the best."""

import json

from ridgeline.apps.cli import run
from ridgeline.apps.reading import read_job
from ridgeline.parallel.plan import plan

SMALL = ("llama2-7b", "--gbs", "32", "--pp", "1,2", "--mbs", "1", "--vpp", "1", "--memory.recompute", "none,full")


def outcome(capsys, *tokens):
    code = run(["search", *tokens])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_best_as_a_job_file_plans_to_what_was_found(capsys, tmp_path):
    path = tmp_path / "best.toml"
    code, out, _ = outcome(capsys, *SMALL, "--fix", "layout.tp=2", "--json", "--output", str(path))
    best = json.loads(out)["best"]
    assert (code, best["layout"]["tp"]) == (0, 2)
    planned = plan(read_job(str(path)).job)
    assert (planned.time.step_us, planned.peak.total_bytes) == (best["step_us"], best["total_bytes"])


def test_the_tables_tell_layouts_neighbours_grid_and_counts(capsys):
    code, out, _ = outcome(capsys, *SMALL, "--tp", "2")
    assert code == 0
    for text in ("llama2-7b on 8 devices: tp=2", "Neighbours", "slower by", "The grid", "none | full", "layouts: "):
        assert text in out


def test_what_lacks_is_told_where_nothing_fits(capsys):
    code, out, _ = outcome(capsys, "llama2-70b", "--gbs", "64", "--tp", "8", "--vpp", "1", "--mbs", "1", "--sp", "true")
    assert code == 1
    assert "No layout fits." in out
    assert "GiB too much" in out


def test_what_only_plans_is_left_out_or_marked(capsys):
    tokens = (*SMALL, "--tp", "2", "--layout.schedule", "seq1f1b", "--layout.slices", "2", "--json")
    code, _, err = outcome(capsys, *tokens)
    assert code == 2
    assert "layout.schedule=('seq1f1b',): is planned only" in err
    code, out, _ = outcome(capsys, *tokens, "--all")
    assert code == 0
    assert json.loads(out)["best"]["lowering_faults"]
