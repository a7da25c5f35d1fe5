"""The published models Ridgeline knows by name.

A preset is data under ``presets/``, one file a series. Each model has the fields of its published ``config.json``
(``config``), where it is published (``source``), when and in which public copies it was read (``retrieved``,
``copies``), and which of its fields no copy showed (``unsourced``: those are left out). Fields that only steer a
library (``use_cache``, ``transformers_version``, ``pretraining_tp``, ``output_router_logits``) are not kept. A model
``like`` another is that one's config with its own fields on top.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from ridgeline.core.data_files import data_bytes, data_names, read_data
from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.frozen import frozen
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import model_from_hf


@frozen(kw_only=True)
class Preset:
    """A published model, as published.

    Attributes:
        name: Ours: the repository's name in lower case, without ``Meta-`` and ``-hf``.
        source: The Hugging Face repository and file; of a model that has none, its paper, checkpoint or launch script.
        retrieved: When the copies were read, ISO date.
        copies: The public copies they were read from.
        config: The fields of the file that define the architecture, and its token ids.
        unsourced: Published fields that no copy showed; not in ``config``.
    """

    name: str
    source: str
    retrieved: str
    copies: tuple[str, ...]
    config: Mapping[str, Any]
    unsourced: tuple[str, ...] = ()


def model_names() -> tuple[str, ...]:
    """Every preset's name, sorted."""
    return tuple(sorted(name for file in _files() for name in _series(file)["models"]))


@cache
def preset_of(name: str) -> Preset:
    """A published model as data.

    Raises:
        SpecError: There is no preset of this name.
    """
    quoted = f'"{name}"'.encode()
    for file in _files():
        # Reading a file is quick, and decoding all of them for one model is not.
        if quoted in data_bytes(__file__, "presets", file) and (entry := _series(file)["models"].get(name)):
            return _preset(name, entry, _series(file))
    raise SpecError(Problem("model", name, "unknown preset", nearest(name, model_names())))


@cache
def model_preset(name: str) -> ModelSpec:
    """The spec of a published model.

    Raises:
        SpecError: There is no preset of this name.

    Example:
        >>> spec = model_preset("qwen2.5-7b")
        >>> spec.family, spec.num_layers, spec.hidden
        ('qwen2', 28, 3584)
    """
    return model_from_hf(preset_of(name).config, name=name)


@cache
def _files() -> tuple[str, ...]:
    return data_names(__file__, "presets")


@cache
def _series(file: str) -> Mapping[str, Any]:
    return MappingProxyType(read_data(__file__, "presets", file))


def _preset(name: str, entry: Mapping[str, Any], series: Mapping[str, Any]) -> Preset:
    base = series["models"][entry["like"]]["config"] if "like" in entry else {}
    config = {**base, **entry["config"]}
    unsourced = tuple(entry.get("unsourced", ()))
    return Preset(
        name=name,
        source=entry["source"],
        retrieved=entry.get("retrieved", series["retrieved"]),
        copies=tuple(series["copies"][copy] for copy in entry["copies"]),
        config=MappingProxyType({key: value for key, value in config.items() if key not in unsourced}),
        unsourced=unsourced,
    )
