"""The page's part on time: constants, errors row by row and explained, ranks within a model, one picture."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ridgeline.parallel.calibration import fit, held_out_values
from tests.accuracy.errors import summary
from tests.accuracy.time import DATA, FOLDS, PRIORS, Outcome, gpu_outcomes, outcomes, rows, runs

PICTURE = Path(__file__).parents[2] / "docs" / "accuracy_time.svg"
EXPLAIN_FROM = 0.15
"""Rows off by more are explained or admitted."""


def section() -> list[str]:
    """Lines of Markdown; constants are fitted anew, and the picture drawn."""
    write_folds()
    outcomes.cache_clear()
    judged = outcomes()
    draw(judged)
    return [
        "## Time",
        "",
        "Throughput that MindSpeed-LLM published for A2: an error is planned over measured throughput, less one. "
        "`held out` are constants fitted without any row of that model's name, `all` those of the chip's data file, "
        "fitted to all Mcore rows and the README's five headline MFUs. The peak that divides those MFUs, 353.9 "
        "TFLOP/s, is inferred: no publication states it. Rows of other code (Legacy, unsaid) and of A3 are never "
        "fitted.",
        "",
        *_summaries(judged),
        "",
        "![planned against measured throughput](accuracy_time.svg)",
        "",
        *_constants(),
        "",
        *_ranks(judged),
        "",
        *_rows("Published throughput on A2", judged),
        "",
        *_rows("Fine-tuning, samples/s", outcomes("ascend_tuning")),
        "",
        *_rows("2026, A3 and A2 (the unit is inferred)", outcomes("ascend_2026")),
        "",
        *_rows("Korthikanti et al. 2022 on A100: no constant of this chip was fitted", gpu_outcomes()),
    ]


def write_folds() -> None:
    """Fit the constants to all rows, and to all but each family's, and write them down."""
    measured = runs([row for row in rows() if row.fitted], start=PRIORS)
    names = tuple(PRIORS)
    folds = {"all": fit(measured, constants=names).values, **held_out_values(measured, constants=names)}
    rounded = {family: {name: round(value, 4) for name, value in fold.items()} for family, fold in folds.items()}
    FOLDS.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def notes() -> dict[str, str]:
    """Why a row is off, by its name, or by its name and kind."""
    return json.loads((DATA / "time_notes.json").read_text(encoding="utf-8"))


def note_of(outcome: Outcome, all_notes: dict[str, str]) -> str:
    """The note on a row, if there is one."""
    row = outcome.row
    return all_notes.get(f"{row.name}, {row.kind}", all_notes.get(row.name, ""))


def is_far(outcome: Outcome) -> bool:
    """Whether a row has to be explained."""
    return max(abs(outcome.error), abs(outcome.held_out or 0.0)) > EXPLAIN_FROM


def ranks(judged: Sequence[Outcome]) -> dict[str, float]:
    """Spearman's correlation of planned and measured throughput over the rows of a model, of at least three."""
    families: dict[str, list[Outcome]] = {}
    for one in judged:
        if one.row.kind == "Mcore":
            families.setdefault(one.row.family, []).append(one)
    return {name: _spearman(members) for name, members in families.items() if len(members) > 2}


def _spearman(members: Sequence[Outcome]) -> float:
    measured = _ranked([one.tokens_per_s for one in members])
    planned = _ranked([one.tokens_per_s * (1 + (one.held_out or 0.0)) for one in members])
    mean = (len(members) - 1) / 2
    spread = sum((rank - mean) ** 2 for rank in measured) * sum((rank - mean) ** 2 for rank in planned)
    return sum((a - mean) * (b - mean) for a, b in zip(measured, planned, strict=True)) / spread**0.5


def _ranked(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def draw(judged: Sequence[Outcome]) -> None:
    """Planned against measured tokens/s of an NPU, a point a row."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "accuracy"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 5.6))
    kinds = (
        ("Mcore", "o", "Mcore, model held out"),
        ("headline", "D", "headline, model held out"),
        ("Legacy", "x", "other code, not fitted"),
        ("unsaid", "x", ""),
    )
    for kind, marker, label in kinds:
        points = [one for one in judged if one.row.kind == kind]
        errors = [one.error if one.held_out is None else one.held_out for one in points]
        planned = [one.tokens_per_s * (1 + error) for one, error in zip(points, errors, strict=True)]
        colour = "0.6" if marker == "x" else None
        axes.plot([one.tokens_per_s for one in points], planned, marker, ms=5, ls="", label=label or None, color=colour)
    ends = (80, 40_000)
    axes.plot(ends, ends, color="black", lw=0.8)
    axes.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends], alpha=0.15, label="within 10 %")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xlabel("measured, tokens/s of an NPU")
    axes.set_ylabel("planned, tokens/s of an NPU")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _summaries(judged: Sequence[Outcome]) -> Iterator[str]:
    yield "| rows | held out | all |"
    yield "|---|---|---|"
    for title, kinds in (
        ("Mcore", ("Mcore",)),
        ("headlines", ("headline",)),
        ("other code, not fitted", ("Legacy", "unsaid")),
    ):
        of_kind = [one for one in judged if one.row.kind in kinds]
        apart = [one.held_out for one in of_kind if one.held_out is not None]
        yield f"| {title} | {summary(apart) if apart else ''} | {summary([one.error for one in of_kind])} |"
    errors = [one.error for one in gpu_outcomes()]
    mean = sum(map(abs, errors)) / len(errors)
    yield f"| A100, not fitted | | {summary(errors)}, mean {mean:.1%} |"


def _constants() -> Iterator[str]:
    folds = json.loads(FOLDS.read_text(encoding="utf-8"))
    apart = [fold for family, fold in folds.items() if family != "all"]
    yield f"{len(PRIORS)} constants are fitted; each fold starts from the value before any run was seen:"
    yield ""
    yield "| constant | before | fitted | over the folds |"
    yield "|---|---|---|---|"
    for name, before in PRIORS.items():
        values = [fold[name] for fold in apart]
        yield f"| {name} | {before:g} | {folds['all'][name]:.3g} | {min(values):.3g} .. {max(values):.3g} |"


def _ranks(judged: Sequence[Outcome]) -> Iterator[str]:
    correlations = ", ".join(f"{name} {value:.2f}" for name, value in ranks(judged).items())
    yield f"Rank correlation of planned and measured throughput within a model, held out: {correlations}."


def _rows(title: str, judged: Sequence[Outcome]) -> Iterator[str]:
    known = notes()
    yield f"### {title}"
    yield ""
    yield "| row | code | npus | layout | measured step, ms | all | held out | note |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in judged:
        row, layout = one.row, one.row.job.layout
        degrees = " ".join(
            f"{name}{getattr(layout, name)}" for name in ("tp", "pp", "vpp", "cp", "ep") if getattr(layout, name) > 1
        )
        apart = "" if one.held_out is None else f"{one.held_out:+.1%}"
        note = note_of(one, known) if is_far(one) else ""
        yield (
            f"| {row.name} | {row.kind} | {row.npus} | {degrees or 'dp'} | {row.step_us / 1e3:,.0f} "
            f"| {one.error:+.1%} | {apart} | {note} |"
        )
