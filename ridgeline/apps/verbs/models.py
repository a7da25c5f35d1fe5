"""``ridgeline models``: the published models known by name."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from ridgeline.apps.output import write_json
from ridgeline.core.codec import FORMATS, dumps, unstructure
from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.params import mtp_params, num_active_params, num_params
from ridgeline.models.describe import draw_model, traits_of
from ridgeline.models.references import Reference, references, references_of
from ridgeline.models.zoo import model_names, model_preset, preset_of

HEAD = "| model | family | layers | parameters | active | context | traits | source, read |"
ROWS = "| MindSpeed-LLM's row | model | tokens | cluster | layout, batch | script |"


def models(
    *words: str,
    json: bool = False,
    markdown: bool = False,
    format: Annotated[str, Parameter(help="Of a spec: toml, yaml or json.")] = "toml",
) -> None:
    """List the published models known by name, or show one: its spec, with a drawing of its blocks.

    Args:
        words: Nothing, or ``show`` and the name of a model; the name alone does too.
        json: List, or show, as JSON.
        markdown: List as the table of docs/models.md.
        format: Of a spec.
    """
    if format not in FORMATS:
        raise SpecError(Problem("--format", format, "unknown", nearest(format, FORMATS)))
    names = words[1:] if words[:1] == ("show",) else words
    if len(names) > 1 or (words and not names):
        raise SpecError(Problem("models", " ".join(words), "must be one name", "write: ridgeline models show NAME"))
    if names:
        _show(names[0], format="json" if json else format)
    elif json:
        write_json([_entry(name) for name in model_names()])
    else:
        lines = _markdown() if markdown else map(_row, model_names())
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _show(name: str, *, format: str) -> None:
    preset, model = preset_of(name), model_preset(name)
    sys.stderr.write(f"source: {preset.source}, read {preset.retrieved}\n")
    for copy in preset.copies:
        sys.stderr.write(f"  from {copy}\n")
    if preset.unsourced:
        sys.stderr.write(f"  no copy showed: {', '.join(preset.unsourced)}\n")
    for row in references_of(name):
        sys.stderr.write(
            f"MindSpeed-LLM trains {_kept(row)} at {row.seq_len:,} on {row.nodes} x {row.devices}: {_layout(row)}\n"
        )
    sys.stderr.write(f"\n{draw_model(model)}\n\n")
    sys.stdout.write(dumps(model, format=format))


def _entry(name: str) -> dict[str, Any]:
    preset, model = preset_of(name), model_preset(name)
    return {
        "name": name,
        "family": model.family,
        "layers": model.num_layers,
        "hidden": model.hidden,
        "parameters": num_params(model),
        "prediction_parameters": sum(param.elements for param in mtp_params(model)),
        "active_parameters": num_active_params(model),
        "context": model.max_position,
        "traits": list(traits_of(model)),
        "source": preset.source,
        "retrieved": preset.retrieved,
        "unsourced": list(preset.unsourced),
        "references": [{**unstructure(row), "layout": dict(row.layout)} for row in references_of(name)],
    }


def _row(name: str) -> str:
    model = model_preset(name)
    total, active = num_params(model), num_active_params(model)
    size = f"{total / 1e9:7.2f}B" + (f", {active / 1e9:.2f}B active" if active != total else "")
    return f"{name:34}{model.family:14}{model.num_layers:4} layers  {size:28}{', '.join(traits_of(model))}"


def _kept(row: Reference) -> str:
    return "it" if row.layers is None else f"{row.layers} layers of it"


def _layout(row: Reference) -> str:
    fields = {**row.layout, "mbs": row.mbs, "gbs": row.gbs}
    return ", ".join(name if value is True else f"{name} {_value(value)}" for name, value in fields.items())


def _value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _markdown() -> Iterator[str]:
    yield "# Models known by name"
    yield ""
    yield "Written by `ridgeline models --markdown`. Parameters are exact and include those of multi-token prediction,"
    yield "which active ones leave out; each total is checked against transformers' model where it has the class."
    yield ""
    yield HEAD
    yield "|---|---|--:|--:|--:|--:|---|---|"
    for entry in map(_entry, model_names()):
        numbers = (f"{entry[key]:,}" for key in ("layers", "parameters", "active_parameters", "context"))
        traits, source = (
            ", ".join(entry["traits"]),
            f"{entry['source'].removesuffix('/config.json')}, {entry['retrieved']}",
        )
        yield f"| {entry['name']} | {entry['family']} | {' | '.join(numbers)} | {traits} | {source} |"
    yield ""
    yield "## The tables of MindSpeed-LLM"
    yield ""
    yield "Each row of its tables of models (v26.1.0: dense, MoE, SSM), the model of that size, and how its script"
    yield "trains it, as `ridgeline import` reads the script; `tests/models/test_references.py` plans each."
    yield ""
    yield ROWS
    yield "|---|---|--:|--:|---|---|"
    for row in references():
        of = row.reason or f"{row.model}" + (f", {row.layers} layers" if row.layers else "")
        cluster = f"{row.nodes} x {row.devices}"
        name = f"{row.family} {row.size}, {row.listed}"
        yield f"| {name} | {of} | {row.seq_len:,} | {cluster} | {_layout(row)} | {row.script} |"
