"""What transformers builds from a published config, without memory for its weights."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import attrs
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import family_of
from ridgeline.models.zoo import model_names, preset_of


@attrs.frozen
class Built:
    """A transformers model: its class, its parameter count and the shapes of its state."""

    architecture: str
    num_params: int
    shapes: dict[str, tuple[int, ...]]


def size_of(name: str) -> str:
    """The preset of the same size that a later, instruct or base model varies; any other is a size of its own.

    Example:
        >>> size_of("qwen3-4b-thinking-2507"), size_of("phi-4-mini-instruct")
        ('qwen3-4b', 'phi-4-mini-instruct')
    """
    size = re.sub(r"(-instruct|-base|-thinking(?=-2507))?(-2507)?$", "", name)
    return size if size in model_names() else name


def transformers_config(config: Mapping[str, Any]) -> PretrainedConfig:
    """A config as transformers reads it, under the model type it knows for the architecture."""
    return AutoConfig.for_model(**{**config, "model_type": family_of(config).name})


def unused_params(spec: ModelSpec) -> int:
    """What transformers allots and does not use: gate and up of experts that give the token back."""
    beside = [block.shortcut for block in spec.layers() if block.shortcut is not None]
    return sum(2 * moe.zero_experts * moe.ffn_hidden * spec.hidden for moe in beside)


@cache
def built(name: str) -> Built:
    """The transformers model of a preset's published config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(preset_of(name).config))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return Built(type(model).__name__, sum(tensor.numel() for tensor in model.parameters()), shapes)
