"""Planned peaks of pipeline schedules against the zero-bubble paper (arXiv 2401.10241, tables 3, 4 and 6).

The most of any stage, on A100s; the first and the last stage have one layer less. The paper does not state its model's
kernels: Megatron-LM's defaults of the time, plain attention and dropout, are taken. Its ZB-1p is planned as ZB-H1; its
ZB-2p* chooses its memory freely, and is left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ridgeline.core.job import Batch, Job, Memory, Pretraining
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan
from tests.accuracy.errors import summary

DATA = Path(__file__).parent / "data" / "zero_bubble_memory.jsonl"
GIB = 2**30
SCHEDULES = MappingProxyType(
    {"1F1B": "1f1b", "1F1B-I": "interleaved_1f1b", "ZB-1p": "zb_h1", "ZB-2p": "zb_2p", "ZB-V": "zb_v"}
)
"""The paper's names to ours."""


class Peak(NamedTuple):
    """One row of a table, and the plan's peak, GiB."""

    model: str
    schedule: str
    mbs: int
    measured: float
    planned: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def peaks() -> tuple[Peak, ...]:
    """Every row of the data file, planned."""
    return tuple(_peak(json.loads(line)) for line in DATA.read_text(encoding="utf-8").splitlines())


def section() -> list[str]:
    """Lines of Markdown."""
    found = peaks()
    return [
        "## Peaks of schedules",
        "",
        "Zero Bubble Pipeline Parallelism, arXiv 2401.10241, tables 3, 4 and 6, measured on A100s. Nothing was fitted "
        "to them. Plain attention and dropout, Megatron-LM's defaults of the time, are taken; the paper says neither.",
        "",
        f"{summary([one.error for one in found])}.",
        "",
        *_table(found),
    ]


def _table(found: tuple[Peak, ...]) -> Iterator[str]:
    yield "| model | schedule | mbs | measured, GiB | plan, GiB | error |"
    yield "|---|---|---:|---:|---:|---:|"
    for one in found:
        yield (
            f"| {one.model} | {one.schedule} | {one.mbs} | {one.measured:.0f} | {one.planned:.1f} | {one.error:+.1%} |"
        )


def _peak(row: dict[str, Any]) -> Peak:
    planned = max(rank.allocated_bytes for rank in plan(_job(row)).memory) / GIB
    return Peak(row["model"], row["schedule"], row["mbs"], row["gib"], planned)


def _job(row: dict[str, Any]) -> Job:
    hidden, heads, pp, layers = row["hidden"], row["heads"], row["pp"], row["layers"]
    block = Block(
        mixer=Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, positions="none"),
        feed_forward=Mlp(ffn_hidden=4 * hidden, activation="gelu"),
    )
    chunks = {"1F1B-I": (layers + 2) // pp, "ZB-V": 2}.get(row["schedule"], 1)
    stages = [(layers + 2) // (pp * chunks)] * (pp * chunks)
    stages[0] -= 1
    stages[-1] -= 1
    return Job(
        model=ModelSpec(
            vocab_size=50304,
            hidden=hidden,
            max_position=row["seq"],
            blocks=(Repeat(block=block, count=layers),),
            learned_positions=True,
            norm="layer",
        ),
        cluster=cluster_preset("atlas-800t-a2", row["num_devices"] // 8),
        batch=Batch(seq_len=row["seq"], mbs=row["mbs"], gbs=row["gbs"]),
        layout=Layout(
            pp=pp,
            vpp=chunks if row["schedule"] == "1F1B-I" else 1,
            stages=tuple(stages),
            schedule=SCHEDULES[row["schedule"]],  # pyright: ignore[reportArgumentType]  checked by the spec itself
        ),
        memory=Memory(plain=("attention",)),
        objective=Pretraining(dropout=0.1),
    )
