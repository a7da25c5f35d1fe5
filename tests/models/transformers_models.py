"""What transformers builds from a published config, without memory for its weights."""

from functools import cache

import attrs
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ridgeline.models.zoo import preset_of


@attrs.frozen
class Built:
    """A transformers model: its class, its parameter count and the shapes of its state."""

    architecture: str
    num_params: int
    shapes: dict[str, tuple[int, ...]]


@cache
def built(name: str) -> Built:
    """The transformers model of a preset's published config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**preset_of(name).config))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return Built(type(model).__name__, sum(tensor.numel() for tensor in model.parameters()), shapes)
