"""The tables of MindSpeed-LLM, row by row: a preset or the reason for none, and a layout that plans."""

from collections import Counter

import attrs
import pytest

from ridgeline.core.codec import unstructure
from ridgeline.models.jobs import job_of
from ridgeline.models.references import Reference, references, references_of
from ridgeline.models.zoo import model_names, model_preset
from ridgeline.parallel.plan import plan


def test_every_row_of_the_tables_is_here_once():
    rows = references()
    assert Counter(row.table for row in rows) == {"dense": 107, "moe": 21, "ssm": 3}
    assert len({(row.family, row.size, row.listed) for row in rows}) == len(rows)


def test_every_row_names_a_preset_or_says_why_none():
    for row in references():
        assert (row.model in model_names()) if row.reason is None else row.model is None, row
    assert [row.size for row in references() if row.reason] == ["MoE-175B"]


def test_a_preset_knows_its_rows():
    assert [(row.size, row.listed, row.layers) for row in references_of("llama3.1-405b")] == [
        ("50B", "128K 8x8", 14),
        ("200B", "8K 8x8", 62),
        ("405B", "8K 8x8", 128),
        ("405B", "128K 36x8", None),
    ]
    assert references_of("gpt2") == ()


@pytest.mark.parametrize(
    "row", [row for row in references() if row.model], ids=lambda row: f"{row.family}-{row.size}-{row.listed}"
)
def test_every_row_plans_as_its_script_lays_it_out(row: Reference):
    assert row.model
    model = model_preset(row.model)
    if row.layers is not None:
        (run,) = model.blocks
        model = attrs.evolve(model, blocks=(attrs.evolve(run, count=row.layers),))
    job = job_of(
        {
            # A script may give its own length, past that of the published config.
            "model": unstructure(attrs.evolve(model, max_position=max(model.max_position, row.seq_len))),
            "cluster": {
                "preset": "atlas-900-a3" if row.devices == 16 else "atlas-800t-a2",
                "nodes": row.nodes,
                **({"devices_per_node": row.devices} if row.devices < 8 else {}),
            },
            "layout": dict(row.layout),
            "batch": {"seq_len": row.seq_len, "mbs": row.mbs, "gbs": row.gbs},
        }
    )
    assert plan(job).job.layout.tp == row.layout.get("tp", 1)
