"""``ridgeline models``: the published models known by name."""

import sys
from typing import Annotated

from cyclopts import Parameter

from ridgeline.core.codec import FORMATS, dumps
from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.params import num_active_params, num_params
from ridgeline.models.zoo import model_names, model_preset, preset_of


def models(
    name: str | None = None, /, *, format: Annotated[str, Parameter(help="toml, yaml or json.")] = "toml"
) -> None:
    """List the published models known by name, or show one.

    Args:
        name: Of a model to show as a spec, with where its figures come from.
        format: Of the spec.
    """
    if format not in FORMATS:
        raise SpecError(Problem("--format", format, "unknown", nearest(format, FORMATS)))
    if name is None:
        for known in model_names():
            sys.stdout.write(f"{_row(known)}\n")
        return
    preset = preset_of(name)
    sys.stderr.write(f"source: {preset.source}, read {preset.retrieved}\n")
    sys.stdout.write(dumps(model_preset(name), format=format))


def _row(name: str) -> str:
    model = model_preset(name)
    total, active = num_params(model), num_active_params(model)
    size = f"{total / 1e9:7.2f}B" + (f", {active / 1e9:.2f}B active" if active != total else "")
    return f"{name:34}{model.family:12}{model.num_layers:4} layers  {size}"
