"""A Hugging Face ``config.json`` to a ``ModelSpec``, and back."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from ridgeline.core.codec import unstructure
from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.model import ModelSpec, Rope
from ridgeline.models.families.table import ARCHITECTURES, BORROWED, EARLIER, FAMILIES, MODEL_TYPES
from ridgeline.models.family import Family, read_fields
from ridgeline.models.hf_rope import read_rope

if TYPE_CHECKING:
    from pathlib import Path

DEQUANTISED = ("fp8", "compressed-tensors", "mxfp4")
"""The ``quant_method`` of published weights that ``ridgeline.checkpoint`` reads."""


def read_hf_config(path: "str | Path") -> dict[str, Any]:
    """The ``config.json`` in a folder, or the file itself; nothing is downloaded.

    Raises:
        SpecError: There is none, or it is not a JSON object.
    """
    file = os.path.join(path, "config.json") if os.path.isdir(path) else path
    try:
        with open(file, "rb") as opened:
            config = msgspec.json.decode(opened.read())
    except OSError as error:
        way_out = "give a folder that holds a config.json, or the file"
        raise SpecError(Problem("hf", str(path), f"cannot be read: {error.strerror}", way_out)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(Problem("hf", str(file), f"is not JSON: {error}")) from error
    if not isinstance(config, dict):
        raise SpecError(Problem("hf", str(file), "must hold a JSON object"))
    return config


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as of the weights in full: those of a known method are dequantised when they are read."""
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
    return {name: value for name, value in config.items() if name != "quantization_config" or method not in DEQUANTISED}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config, by ``architectures`` and ``model_type``.

    Raises:
        SpecError: Neither is given or known, or they contradict each other.
    """
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if not architectures:
        if str(model_type) not in MODEL_TYPES:
            raise SpecError(Problem("model_type", model_type, "unknown", nearest(str(model_type), MODEL_TYPES)))
        return FAMILIES[MODEL_TYPES[str(model_type)]]
    architecture = str(architectures[0] if isinstance(architectures, list) else architectures)
    if architecture not in ARCHITECTURES:
        raise SpecError(Problem("architectures", architecture, "unknown", nearest(architecture, ARCHITECTURES)))
    if BORROWED.get(str(model_type)) == architecture:
        return FAMILIES[str(model_type)]
    name = ARCHITECTURES[architecture]
    if model_type not in (None, EARLIER.get(architecture)) and MODEL_TYPES.get(str(model_type)) != name:
        rule = f"contradicts architectures={architecture!r}, which is of {name!r}"
        raise SpecError(Problem("model_type", model_type, rule))
    return FAMILIES[name]


def model_from_hf(config: Mapping[str, Any], *, name: str = "custom") -> ModelSpec:
    """The spec that a Hugging Face config describes.

    Fields outside the family's table are ones that its transformers class does not read: they cannot change the model.

    Raises:
        SpecError: Every field that is missing, of the wrong type, contradictory or not modelled.
    """
    family = family_of(config)
    values, problems = read_fields(config, family.fields)
    rope, rope_problems = Rope(), []
    if not family.rope_by_layer:
        rope, rope_problems = read_rope(
            config, base=family.rope_base, share=family.rotary_share, interleaved=family.interleaved
        )
    if problems or rope_problems or rope is None:
        raise SpecError([*problems, *rope_problems])
    return attrs.evolve(family.spec_of(values, rope), name=name, family=family.name)


def hf_config_of(spec: ModelSpec) -> dict[str, Any]:
    """The ``config.json`` that transformers loads as this model; dtype and token ids are the caller's to add.

    ``model_from_hf(hf_config_of(spec), name=spec.name) == spec``.

    Raises:
        SpecError: The spec's family cannot express it; the first field that would be lost is named.
    """
    if spec.family not in FAMILIES:
        raise SpecError(Problem("family", spec.family, "has no Hugging Face class", nearest(spec.family, FAMILIES)))
    family = FAMILIES[spec.family]
    for index, run in enumerate(spec.blocks):
        for part, allowed in (("mixer", family.mixers), ("feed_forward", family.feed_forwards)):
            layer = getattr(run.block, part)
            if not isinstance(layer, allowed):
                rule = f"cannot be written as family={family.name!r}"
                known = f"known: {', '.join(getattr(kind, 'kind', 'none') for kind in allowed)}"
                kind = None if layer is None else layer.kind
                raise SpecError(Problem(f"blocks[{index}].block.{part}.kind", kind, rule, known))
    named = {"architectures": [family.architectures[0]], "model_type": family.name}
    # A whole head is not what a file that is silent says of a family whose heads turn in part.
    whole = {} if family.rotary_share in (None, 1.0) else {"partial_rotary_factor": 1.0}
    config = {**named, **whole, **family.config_of(spec)}
    returned = model_from_hf(config, name=spec.name)
    if returned != spec:
        path, value, back = _first_difference(spec, returned)
        rule = f"cannot be written as family={family.name!r}, which would make it {back!r}"
        raise SpecError(Problem(path, value, rule))
    return config


def _first_difference(ours: ModelSpec, theirs: ModelSpec) -> tuple[str, Any, Any]:
    """Where two models differ: the field's path, its value in the one and in the other."""
    for layer, (one, other) in enumerate(zip(ours.layers(), theirs.layers(), strict=True)):
        if one != other:
            return _leaf(one, other, f"layers[{layer}]")
    return _leaf(ours, theirs, "")


def _leaf(ours: Any, theirs: Any, path: str) -> tuple[str, Any, Any]:
    if type(ours) is not type(theirs) or not attrs.has(type(ours)):
        one, other = (unstructure(part) if attrs.has(type(part)) else part for part in (ours, theirs))
        return path, one, other
    names = (
        field.name for field in attrs.fields(type(ours)) if field.name != "blocks"
    )  # which are equal layer by layer
    name = next(name for name in names if getattr(ours, name) != getattr(theirs, name))
    return _leaf(getattr(ours, name), getattr(theirs, name), f"{path}.{name}" if path else name)
