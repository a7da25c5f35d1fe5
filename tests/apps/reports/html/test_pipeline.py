"""The pipeline is drawn to scale: every action once, where and as long as the plan says."""

import re

import pytest

from ridgeline.apps.reports.html.nodes import markup
from ridgeline.apps.reports.html.pipeline import BAR, LEFT, RIGHT, pipeline_section
from ridgeline.core.transforms import resize, with_layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.plan import plan
from tests.apps.reports.html.reader import Page

SHAPE = re.compile(r"M([\d.]+) [\d.]+h([\d.]+)")


def drawn_boxes(svg_text):
    """Begin and width of each action in the first picture, narrow ones in paths among them."""
    first = Page(svg_text[: svg_text.index("</svg>") + 6][svg_text.index("<svg") :])
    boxes = [
        (float(one["attrs"]["x"]), float(one["attrs"]["width"]))
        for one in first.all("rect", height=str(BAR))
        if re.fullmatch(r"fill-[FBIWR]( later)?", one["attrs"]["class"])
    ]
    return boxes + [
        (float(x), float(width)) for path in first.all("path") for x, width in SHAPE.findall(path["attrs"]["d"])
    ]


@pytest.mark.parametrize(
    "job",
    [
        with_layout(tp=2, pp=4)(preset("llama2-7b")),
        with_layout(tp=1, sp=False, pp=8, schedule="zb_h1")(preset("llama2-7b")),
        resize(gbs=512)(with_layout(tp=2, pp=4, vpp=2)(preset("llama2-7b"))),
    ],
    ids=["wide", "split", "narrow"],
)
def test_every_action_is_drawn_once(job):
    """Also where an action is thinner than a pixel."""
    planned = plan(job)
    per_us = (RIGHT - LEFT) / planned.time.step_us
    expected = sorted(
        (LEFT + start * per_us, (end - start) * per_us)
        for starts, ends in zip(planned.timeline.start_us, planned.timeline.end_us, strict=True)
        for start, end in zip(starts, ends, strict=True)
    )
    found = sorted(drawn_boxes(markup(pipeline_section(planned))))
    assert len(found) == len(expected)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=0.06)
    assert sorted(w for _, w in found) == pytest.approx(sorted(w for _, w in expected), abs=0.006)
