"""Planned activations of layers against Korthikanti et al. 2022 (arXiv 2205.05198), figures 1 and 7.

GPT with gelu, dropout and all of attention's weights in memory, as the paper counts it: the layers of the first
pipeline rank, at its fullest, without embedding and head. 8 rows are GiB, 20 a percentage of tensor parallelism alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ridgeline.core.job import Batch, FullRecompute, Job, Memory, Pretraining, SelectiveRecompute
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat
from ridgeline.parallel.activations import moments, stage_live
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan
from ridgeline.parallel.work import stage_work
from tests.accuracy.errors import summary

DATA = Path(__file__).parent / "data" / "korthikanti_activations.jsonl"
GIB = 2**30
RECOMPUTES = {
    "none": (False, None),
    "seq": (True, None),
    "sel": (False, SelectiveRecompute(modules=("core_attn",))),
    "seqsel": (True, SelectiveRecompute(modules=("core_attn",))),
    "full": (False, FullRecompute()),
}
"""The paper's techniques: whether sequences are split too, and what is recomputed."""


class Published(NamedTuple):
    """One figure of the paper, and what the plan gives."""

    model: str
    recompute: str
    unit: str
    value: float
    planned: float

    @property
    def error(self) -> float:
        return self.planned / self.value - 1


def published() -> tuple[Published, ...]:
    """Every row of the data file, planned."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return tuple(map(_planned, rows))


def section() -> list[str]:
    """Lines of Markdown."""
    found = published()
    return [
        "## Activations",
        "",
        "Korthikanti et al. 2022, arXiv 2205.05198, figures 1 (GiB) and 7 (share of tensor parallelism alone): layers "
        "of the first pipeline rank.",
        "",
        f"GiB: {summary([one.error for one in found if one.unit == 'GiB'])}; "
        f"shares: {summary([one.error for one in found if one.unit == '%'])}.",
        "",
        *_table(found),
    ]


def _table(found: tuple[Published, ...]) -> Iterator[str]:
    yield "| model | technique | published | plan | error |"
    yield "|---|---|---:|---:|---:|"
    for one in found:
        yield (
            f"| {one.model} | {one.recompute} | {one.value:.2f} {one.unit} | {one.planned:.2f} {one.unit} "
            f"| {one.error:+.1%} |"
        )


def _planned(row: dict[str, Any]) -> Published:
    held = _layers_bytes(_job(row, row["recompute"]))
    if row["metric"] == "activation_memory":
        return Published(row["model"], row["recompute"], "GiB", row["value"], held / GIB)
    share = held / _layers_bytes(_job(row, "none")) * 100
    return Published(row["model"], row["recompute"], "%", row["value"], share)


def _layers_bytes(job: Job) -> int:
    planned = plan(job)
    layers = [one._replace(before=(), after=()) for one in stage_work(job, planned.stages)]
    return max(moment.held for moment in moments(planned.schedule.ranks[0], stage_live(job, layers)))


def _job(row: dict[str, Any], recompute: str) -> Job:
    hidden, heads, pp = row["hidden"], row["heads"], row["pp"]
    block = Block(
        mixer=Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, positions="none"),
        feed_forward=Mlp(ffn_hidden=4 * hidden, activation="gelu"),
    )
    sp, technique = RECOMPUTES[recompute]
    return Job(
        model=ModelSpec(
            vocab_size=51200, hidden=hidden, max_position=row["seq"], blocks=(Repeat(block=block, count=row["layers"]),)
        ),
        cluster=cluster_preset("atlas-800t-a2", pp),
        batch=Batch(seq_len=row["seq"], mbs=row["mbs"], gbs=row["mbs"] * 2 * pp),
        layout=Layout(tp=row["tp"], pp=pp, vpp=row["vpp"] or 1, sp=sp),
        memory=Memory(recompute=technique, plain=("attention",)),
        objective=Pretraining(dropout=0.1),
    )
