"""The page holds the plan's own numbers, stays text whatever a job is called, and needs nothing from elsewhere."""

import re
from collections import defaultdict

import attrs
import pytest

from ridgeline.apps.cli import run as cli
from ridgeline.apps.reports.html.page import plan_page
from ridgeline.apps.reports.plan import MEMORY_COLUMNS
from ridgeline.core.transforms import with_layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.link_use import link_uses
from ridgeline.parallel.plan import plan, plan_data
from ridgeline.parallel.roofline import op_points
from ridgeline.parallel.work import stage_work
from tests.apps.reports.html.reader import Page

JOBS = {
    "chunks": with_layout(tp=2, pp=4, vpp=2)(preset("llama2-7b")),
    "experts": with_layout(tp=2, pp=2, ep=4)(preset("qwen3-30b-a3b", nodes=2)),
    "alone": preset("qwen3-0.6b", cluster="cpu"),
}
HOSTILE = "</title><script>alert('1')</script>\"&amp;<img src=x onerror=alert(2)>]]>"


@pytest.fixture(scope="module", params=JOBS.values(), ids=JOBS)
def planned(request):
    return plan(request.param)


@pytest.fixture(scope="module")
def page(planned):
    return Page(plan_page(planned, chosen=("batch.gbs=16: for a reason",)))


def test_memory_is_the_plan_s(planned, page):
    """Every component of every rank, to the byte, as ``--json`` has it."""
    names = [f"{name}_bytes" for name in (*MEMORY_COLUMNS, "total", "capacity")]
    assert page.numbers("memory") == [rank[name] for rank in plan_data(planned)["memory"] for name in names]


def test_time_is_the_plan_s(planned, page):
    """Each part with its share, and the step."""
    data = plan_data(planned)["time"]
    parts = [value for us in data["parts_us"].values() for value in (us, us / data["step_us"])]
    assert page.numbers("time") == [*parts, data["step_us"]]


def test_operations_and_links_are_the_plan_s(planned, page):
    """A row for each operation and each collective, with the numbers that the functions give."""
    points = op_points(planned.job, mesh=planned.mesh, work=stage_work(planned.job, planned.stages))
    shown = page.numbers("roofline")
    for point in points:
        assert {point.us, point.moved_bytes, point.bytes_per_s} <= set(shown)
    uses = link_uses(planned.job, mesh=planned.mesh, stages=planned.stages, collectives=planned.collectives)
    assert page.numbers("links") == [
        value
        for use in uses
        for value in (
            use.collective.size_bytes,
            max(use.collective.counts),
            use.intra_bytes,
            use.inter_bytes,
            use.us,
        )
    ]


def test_every_sentence_is_there(planned, page):
    items = [element["text"] for element in page.all("li")]
    for sentence in (*planned.warnings, *planned.assumptions, "batch.gbs=16: for a reason"):
        assert sentence in items


def test_rows_are_as_long_as_their_heads(page):
    """So that no number stands under a foreign heading; ids are used once."""
    ids = [element["attrs"]["id"] for element in page.elements if "id" in element["attrs"]]
    assert len(ids) == len(set(ids))
    for name in ids:
        columns = [element for element in page.all("th", scope="col") if name in element["path"]]
        cells = [element for element in page.elements if element["tag"] in ("td", "th") and name in element["path"]]
        assert len(cells) % len(columns) == 0


def test_nothing_is_loaded(planned, page):
    """No script, no address in any attribute or style, and a policy that forbids both."""
    assert not page.all("script")
    assert not page.all("link")
    for element in page.elements:
        assert not {"src", "href", "srcset", "onload", "onerror"} & element["attrs"].keys()
        assert "//" not in "".join(value or "" for value in element["attrs"].values())
    (style,) = page.all("style")
    assert not re.search(r"url\(|@import|@font-face", style["text"])
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["attrs"]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_name_stays_text():
    """Whatever a job is called is what is read, in the title, the heading and the job itself."""
    page = Page(plan_page(plan(attrs.evolve(JOBS["alone"], name=HOSTILE))))
    assert not page.all("script")
    assert not page.all("img")
    assert page.all("h1")[0]["text"] == HOSTILE
    assert page.all("title")[0]["text"] == f"{HOSTILE}: plan"
    assert "alert('1')" in page.all("pre")[0]["text"]


def test_bars_are_as_long_as_their_bytes(planned, page):
    """Each rank's segments touch, and together are to the device's line as its bytes are to the device's."""
    (capacity,) = page.all("line", class_="capacity")
    rows = defaultdict(list)
    for element in page.all("rect"):
        if element["attrs"].get("class", "").removeprefix("fill-") in MEMORY_COLUMNS:
            rows[float(element["attrs"]["y"])].append(element["attrs"])
    for rank, (_, row) in zip(planned.memory, sorted(rows.items()), strict=True):
        begins = [float(one["x"]) for one in row]
        ends = [float(one["x"]) + float(one["width"]) for one in row]
        assert ends[:-1] == pytest.approx(begins[1:], abs=0.02)
        share = (ends[-1] - begins[0]) / (float(capacity["attrs"]["x1"]) - begins[0])
        assert share == pytest.approx(rank.total_bytes / rank.capacity_bytes, rel=1e-3)


def test_memory_over_time_peaks_with_the_plan(planned, page):
    """The highest point of the drawing is to what is always there as the plan's peak is."""
    rank = planned.peak
    (path,), (always,) = page.all("path", class_="fill-activations"), page.all("rect", class_="fill-always")
    heights = [float(y) for y in re.findall(r"V([\d.]+)", path["attrs"]["d"])]
    floor = heights[-1]
    ratio = (floor - min(heights)) / float(always["attrs"]["height"])
    assert ratio == pytest.approx(rank.allocated_bytes / (rank.static_bytes + rank.buffers_bytes), rel=5e-3)


def test_the_command_writes_the_page(tmp_path, capsys):
    """With the trace too, if asked; of an impossible job nothing is written; one kind of output at a time."""
    html, trace = tmp_path / "plan.html", tmp_path / "step.json"
    assert cli(["plan", "llama2-7b", "--tp", "3", "--html", str(html)]) == 2
    assert cli(["plan", "llama2-7b", "--json", "--html", str(html)]) == 2
    assert "ask for one at a time" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert cli(["plan", "llama2-7b", "--pp", "2", "--html", str(html), "--trace", str(trace)]) == 0
    assert capsys.readouterr().out == f"written to {html}\nwritten to {trace}\n"
    assert Page(html.read_text()).all("h1")[0]["text"] == "llama2-7b"
