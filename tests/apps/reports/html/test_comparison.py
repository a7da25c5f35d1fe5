"""A comparison as a page: the numbers of ``ridgeline compare --json``, and nothing loaded."""

import json

from ridgeline.apps.cli import run as cli
from tests.apps.reports.html.reader import Page


def test_the_numbers_are_those_of_both_plans(tmp_path, capsys):
    """Each figure of each section, left and right, exactly; each changed field with both values."""
    jobs, html = ("llama2-7b", "llama2-13b"), tmp_path / "both.html"
    assert cli(["compare", *jobs, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert cli(["compare", *jobs, "--html", str(html)]) == 0
    page = Page(html.read_text())
    for section in ("step", "memory", "time"):
        expected = [row[side] for row in data["figures"] if row["section"] == section for side in ("left", "right")]
        assert page.numbers(section) == expected
    cells = [one["text"] for one in page.elements if one["tag"] in ("td", "th") and "changes" in one["path"]][3:]
    assert cells[::3] == [change["path"] for change in data["changes"]]
    assert ["model.hidden", "4096", "5120"] in [cells[i : i + 3] for i in range(0, len(cells), 3)]
    assert not page.all("script")


def test_equal_jobs_and_two_outputs(tmp_path, capsys):
    """Equal jobs have no changed field; JSON and a page together are refused before anything is written."""
    html = tmp_path / "both.html"
    assert cli(["compare", "llama2-7b", "llama2-7b", "--json", "--html", str(html)]) == 2
    assert "ask for one at a time" in capsys.readouterr().err
    assert not html.exists()
    assert cli(["compare", "llama2-7b", "llama2-7b", "--html", str(html)]) == 0
    assert "None." in html.read_text()
