"""Ranks' real programs traced on the virtual NPU, beside their plans.

Traces take minutes, so they are kept in ``data/traces.jsonl`` and compared with the plans of today; ``python -m
tests.accuracy.traces`` makes them anew, which is due when the runtime changes what it holds or sends.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from msgspec.json import decode, encode

from ridgeline.apps.reading import read_job
from ridgeline.apps.runtime.tracing import traced
from ridgeline.models.program import lower
from ridgeline.parallel.plan import Plan, plan
from ridgeline.parallel.traced import Comparison, Trace, TracedAction, TracedCollective, compare

DATA = Path(__file__).parent / "data" / "traces.jsonl"
GIB = 2**30

HEAD = """## Plans and traced programs

Each rank's real program, run for one step in tensors without numbers on the virtual NPU ([trace.md](trace.md)), beside
its plan of today. An error is plan over trace, less one, of live bytes at the step's peak; a collective is as planned
if its kind, group, size and count all are. Routers are taken to choose every expert equally often, and every rank to
send what the traced one does. The traces are kept in `tests/accuracy/data/traces.jsonl`, which `python -m
tests.accuracy.traces` makes anew, in minutes.

| job | rank | planned, GiB | traced, GiB | error | weights to moments | collectives as planned |
|---|---|---|---|---|---|---|"""

RUNS: tuple[tuple[str, int], ...] = (
    ("qwen2.5-72b --cluster atlas-800t-a2 --cluster.nodes 16 --tp 8 --pp 4 --sp true --gbs 64", 40),
    ("deepseek-v3 --cluster atlas-800t-a2 --cluster.nodes 128 --tp 4 --pp 32 --ep 8 --sp true --gbs 256", 600),
)
"""Jobs, as the command line takes them, and the rank that is traced."""


@attrs.frozen
class Row:
    """A kept trace and today's plan."""

    tokens: str
    plan: Plan
    trace: Trace

    @property
    def comparison(self) -> Comparison:
        """Both, side by side."""
        return compare(self.plan, self.trace)


def rows() -> Iterator[Row]:
    """Every kept trace."""
    for line in DATA.read_text(encoding="utf-8").splitlines():
        kept = decode(line)
        yield Row(kept["tokens"], planned(kept["tokens"]), trace_of(kept))


def planned(tokens: str) -> Plan:
    """The plan of a job."""
    name, *options = tokens.split()
    return plan(read_job(name, options).job)


def section() -> list[str]:
    """The part of docs/accuracy.md."""
    lines = [HEAD]
    for row in rows():
        comparison = row.comparison
        states, trained = comparison.memory[:-1], sum(one.traced for one in comparison.memory[:-1])
        kinds = len(comparison.collectives)
        lines.append(
            f"| `{row.tokens}` | {row.trace.rank} of {row.plan.mesh.world_size} "
            f"| {comparison.planned_bytes / GIB:.2f} | {comparison.traced_bytes / GIB:.2f} | {comparison.error:+.1%} "
            f"| {sum(one.planned for one in states) / trained - 1:+.1%} "
            f"| {kinds - len(comparison.differing)} of {kinds} |"
        )
    return lines


def trace_of(kept: dict[str, Any]) -> Trace:
    """A trace as it was kept: without its operations, samples and time."""
    return Trace(
        rank=kept["rank"],
        actions=tuple(TracedAction(*action) for action in kept["actions"]),
        peak=tuple((name, size) for name, size in kept["peak"]),
        ops=(),
        collectives=tuple(TracedCollective(kind, tuple(ranks), *rest) for kind, ranks, *rest in kept["collectives"]),
        samples=(),
        reads=tuple((place, times) for place, times in kept["reads"]),
        seconds=0.0,
    )


def kept_of(tokens: str, trace: Trace) -> dict[str, Any]:
    """What is kept of a trace."""
    names = ("rank", "actions", "peak", "collectives", "reads")
    return {"tokens": tokens, **{name: getattr(trace, name) for name in names}}


def main() -> None:
    """Trace every run and keep the traces."""
    lines = []
    for tokens, rank in RUNS:
        sys.stdout.write(f"{tokens} --rank {rank}\n")
        trace = traced(lower(planned(tokens), rank))
        lines.append(encode(kept_of(tokens, trace)).decode())
    DATA.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
