"""``ridgeline calibrate``: a chip's efficiencies from measured runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ridgeline.apps.output import open_console, write_json

if TYPE_CHECKING:
    from ridgeline.parallel.calibration import Fit, MeasuredRun


def calibrate(
    runs: Path,
    /,
    *,
    chip: str | None = None,
    fit: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    output: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Fit the efficiencies of a chip and its links to measured runs, and tell how far plans lie from them.

    Each line of RUNS is JSON: a "job" (its fields, or a job file's name) and one of "step_ms", "tokens_per_s",
    "tokens_per_s_per_device", "samples_per_s" or "mfu"; or the folder of a "profile", which says both; also a "name",
    and a "family". The error of a run held out is that of constants fitted to the other families.

    Args:
        runs: Measured runs, a line each; or the folder of one run's profile.
        chip: Take the runs on this chip only.
        fit: A constant to fit, as --fit gemm --fit intra; by default all.
        output: Write the constants as the cluster of a job file: .toml, .yaml or .json.
        json: Print everything as JSON instead.
    """
    from ridgeline.apps.measured import read_runs
    from ridgeline.core.errors import Problem, SpecError, nearest
    from ridgeline.parallel.calibration import CONSTANTS, constants_of, held_out
    from ridgeline.parallel.calibration import fit as fitted_to

    if unknown := [name for name in fit if name not in CONSTANTS]:
        raise SpecError(Problem("--fit", name, "unknown constant", nearest(name, CONSTANTS)) for name in unknown)
    measured = read_runs(runs, chip=chip)
    constants = fit or CONSTANTS
    found = fitted_to(measured, constants=constants)
    several = len({run.family for run in measured}) > 1
    apart = held_out(measured, constants=constants) if several else None
    before = constants_of(measured[0].job.cluster)
    if output is not None:
        _write(output, measured[0], found)
    data = {
        "chip": measured[0].job.cluster.chip.name,
        "constants": {name: {"before": before[name], "fitted": value} for name, value in found.values.items()},
        "runs": [
            {"name": run.name, "family": run.family, "step_ms": run.step_us / 1e3, "error": found.errors[index]}
            | ({"held_out_error": apart[index]} if apart else {})
            for index, run in enumerate(measured)
        ],
        "errors": _sizes(found.errors),
        "held_out_errors": _sizes(apart) if apart else None,
    }
    if json:
        write_json(data)
    else:
        _print(data)
    return 0


def _sizes(errors: Sequence[float]) -> dict[str, float]:
    """Half of all errors are at most the median, nine in ten at most the other."""
    ranked = sorted(map(abs, errors))
    return {"median": ranked[(len(ranked) - 1) // 2], "nine_in_ten": ranked[(9 * len(ranked) + 9) // 10 - 1]}


def _write(path: Path, run: "MeasuredRun", found: "Fit") -> None:
    """The constants as part of a job file, to stand beside or be merged into another's cluster."""
    from ridgeline.apps.files import write_whole
    from ridgeline.core.codec import FORMATS, format_of
    from ridgeline.parallel.calibration import LINKS
    from ridgeline.parallel.clusters import PRESETS

    name = run.job.cluster.name
    preset = {"preset": name} if name in PRESETS else {}
    efficiency = {name: value for name, value in found.values.items() if name not in LINKS}
    links = {name: {"efficiency": value} for name, value in found.values.items() if name in LINKS}
    cluster = {**preset, "chip": {"efficiency": efficiency}, **links}
    write_whole(path, FORMATS[format_of(path)].dump({"cluster": cluster}), option="--output")


def _print(data: dict[str, Any]) -> None:
    from rich.table import Table

    console = open_console()
    constants = Table(title=f"Constants of {data['chip']}", title_justify="left")
    for name in ("constant", "before", "fitted"):
        constants.add_column(name, justify="left" if name == "constant" else "right")
    for name, row in data["constants"].items():
        constants.add_row(name, f"{row['before']:.3f}", f"{row['fitted']:.3f}")
    runs = Table(title="Steps, planned over measured less one", title_justify="left")
    for name in ("run", "family", "measured ms", "error", "held out"):
        runs.add_column(name, justify="left" if name in ("run", "family") else "right")
    for row in data["runs"]:
        apart = f"{row['held_out_error']:+.1%}" if "held_out_error" in row else ""
        runs.add_row(row["name"], row["family"], f"{row['step_ms']:,.1f}", f"{row['error']:+.1%}", apart)
    console.print(constants)
    console.print(runs)
    for name, words in (("errors", "fitted"), ("held_out_errors", "held out")):
        if sizes := data[name]:
            half, most = sizes["median"], sizes["nine_in_ten"]
            console.print(f"{words}: half within {half:.1%}, nine in ten within {most:.1%}", highlight=False)
