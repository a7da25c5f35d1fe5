"""The page's part on memory: errors over all rows, by feature and row by row, each large one explained."""

import json
from collections.abc import Iterator, Sequence

from ridgeline.parallel.plan import plan
from tests.accuracy.errors import summary
from tests.accuracy.memory import DATA, Outcome, outcomes
from tests.accuracy.time import rows

EXPLAIN_FROM = 0.15
"""Rows off by more are explained or admitted."""

FEATURES = {
    "pipeline": lambda flags: int(flags.get("pipeline-model-parallel-size", "1")) > 1,
    "interleaved": lambda flags: "num-layers-per-virtual-pipeline-stage" in flags,
    "context parallel": lambda flags: int(flags.get("context-parallel-size", "1")) > 1,
    "experts": lambda flags: "num-experts" in flags,
    "distributed optimizer": lambda flags: "use-distributed-optimizer" in flags,
    "reuse-fp32-param": lambda flags: "reuse-fp32-param" in flags,
    "o2-optimizer": lambda flags: "o2-optimizer" in flags,
    "swap-optimizer": lambda flags: "swap-optimizer" in flags,
    "swap-attention": lambda flags: "swap-attention" in flags,
    "recompute": lambda flags: any(name.startswith("recompute") for name in flags),
    "fp16": lambda flags: "fp16" in flags,
    "fp32": lambda flags: "fp16" not in flags and "bf16" not in flags,
    "LoRA, QLoRA": lambda flags: "lora-r" in flags,
    "preferences": lambda flags: flags.get("stage") in ("dpo", "simpo"),
    "mc2, coc": lambda flags: "use-ascend-mc2" in flags or "use-ascend-coc" in flags,
    "tp-2d": lambda flags: "tp-2d" in flags,
    "legacy models": lambda flags: "use-mcore-models" not in flags,
}


def section() -> list[str]:
    """Lines of Markdown."""
    judged = outcomes()
    return [
        "## Memory",
        "",
        "MindSpeed-LLM's CI on Ascend: MiB allocated after the first update, and the peak by then (so before Adam's "
        "moments existed, or during that update). A row's error is that of its fullest pipeline rank. `listed` are the "
        "53 rows the gates were set for; the others are the same CI's other cases and versions. No constant is fitted "
        "to a row: each mechanism stands in the planner with its source.",
        "",
        *_summaries(judged),
        "",
        *_sides(judged),
        "",
        *_features(judged),
        "",
        *_rows(judged),
        "",
        *_not_planned(judged),
    ]


def notes() -> dict[str, str]:
    """Why a row is off, by its name, or by its name and version."""
    return json.loads((DATA / "memory_notes.json").read_text(encoding="utf-8"))


def note_of(outcome: Outcome, all_notes: dict[str, str]) -> str:
    """The note on a row, if there is one."""
    row = outcome.row
    return all_notes.get(f"{row.name} {row.version}", all_notes.get(row.name, ""))


def is_far(outcome: Outcome) -> bool:
    """Whether a row is off by so much that it must be explained; a bound is judged from below only."""
    point = outcome.fullest
    high = point.peak_error if not outcome.unpadded else min(0.0, point.peak_error)
    return max(abs(point.static_error), abs(high)) > EXPLAIN_FROM


def static_errors(judged: Sequence[Outcome]) -> list[float]:
    """Of every planned row."""
    return [one.fullest.static_error for one in judged if one.points]


def peak_errors(judged: Sequence[Outcome]) -> list[float]:
    """Of every planned row whose sequences are as long as the plan's."""
    return [one.fullest.peak_error for one in judged if one.points and not one.unpadded]


def _summaries(judged: Sequence[Outcome]) -> Iterator[str]:
    yield "| rows | after the first update | peak | peak where sequences are shorter than planned: a bound |"
    yield "|---|---|---|---|"
    listed = [one for one in judged if one.row.listed]
    others = [one for one in judged if not one.row.listed]
    for name, some in (("listed", listed), ("others", others), ("all", judged)):
        bounds = [one.fullest.peak_error for one in some if one.points and one.unpadded]
        bound = f"{len(bounds)} rows, {sum(error >= -0.01 for error in bounds)} of them not below the measurement"
        yield f"| {name} | {summary(static_errors(some))} | {summary(peak_errors(some))} | {bound} |"


def beyond(judged: Sequence[Outcome]) -> list[str]:
    """Rows whose measured peak is more than what decides whether a job fits, by name and version."""
    return [f"{one.row.name} {one.row.version}" for one in judged if one.points and one.fullest.most_error < 0]


def _sides(judged: Sequence[Outcome]) -> Iterator[str]:
    """How often a run took more than its plan says."""
    planned = [one for one in judged if one.points]
    yield "How many runs took more than planned, at their peak, of all rows, bounds among them:"
    yield ""
    for name, errors in (
        ("than `allocated_bytes`, the estimate itself", [one.fullest.peak_error for one in planned]),
        ("than it by more than 1 %", [one.fullest.peak_error + 0.01 for one in planned]),
        (
            "than with allowance and fragments, which decide whether a job fits",
            [one.fullest.most_error for one in planned],
        ),
    ):
        low = sum(error < 0 for error in errors)
        yield f"* {name}: {low} of {len(errors)}, {low / len(errors):.0%}"
    yield ""
    yield f"The last are {', '.join(beyond(judged))}: each is explained or admitted below."
    yield ""
    ran = [row.job for row in rows() if row.fitted]
    refused = sum(not plan(job).peak.fits for job in ran)
    yield (
        f"What it costs: of the {len(ran)} published runs of Megatron-core's code on devices of 64 GB, which all ran, "
        f"plans say of {refused} that they do not fit."
    )


def _features(judged: Sequence[Outcome]) -> Iterator[str]:
    yield "| feature | after the first update | peak |"
    yield "|---|---|---|"
    for name, holds in FEATURES.items():
        some = [one for one in judged if holds(one.row.flags)]
        yield f"| {name} | {summary(static_errors(some))} | {summary(peak_errors(some))} |"


def _rows(judged: Sequence[Outcome]) -> Iterator[str]:
    all_notes = notes()
    yield "| row | version | listed | pp rank | MiB after an update | plan | peak | plan | at | note |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---|---|"
    for one in judged:
        if not one.points:
            continue
        point, row = one.fullest, one.row
        bound = "a bound: sequences are shorter. " if one.unpadded else ""
        yield (
            f"| {row.name} | {row.version} | {'yes' if row.listed else ''} | {point.pp_rank} | {point.static:.0f} "
            f"| {point.static_error:+.1%} | {point.peak:.0f} | {point.peak_error:+.1%} | {point.at} "
            f"| {bound}{note_of(one, all_notes)} |"
        )


def _not_planned(judged: Sequence[Outcome]) -> Iterator[str]:
    yield "Rows left out:"
    yield ""
    for one in judged:
        if not one.points:
            yield f"* {one.row.name} {one.row.version}{' (listed)' if one.row.listed else ''}: {one.why_not}"
