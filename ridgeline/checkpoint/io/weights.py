"""Weights wherever they are stored, as one function that reads a box of a parameter, and what is done with it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

from ridgeline.checkpoint.boxes import Box
from ridgeline.checkpoint.io.torch_dist import Reader, open_checkpoint, read_box
from ridgeline.checkpoint.names import optimizer_key, params_of, stored, stored_box
from ridgeline.checkpoint.published import names_fault
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec

Weights: TypeAlias = Callable[[str, Box, torch.Tensor], None]
"""Reads a box of the parameter of this full name into memory of the box's shape, converting to its dtype and device."""


def checkpoint_weights(folder: str | Path, model: ModelSpec) -> Weights:
    """A model's weights in a saved step; in fp32 where it has them so and fp32 is asked for.

    Raises:
        CheckpointError: The folder is no checkpoint, or lacks tensors of this model; all are named.
    """
    reader = open_checkpoint(Path(folder))
    params = params_of(model)
    expected = {place.key: place.shape for place in (stored(fqn, param) for fqn, param in params.items())}
    found = ((key, reader.index.tensors[key].shape) for key in expected if key in reader.index.tensors)
    if fault := names_fault(found, expected.items(), ()):
        raise CheckpointError(f"checkpoint={folder}: does not hold the weights of model={model.name!r}:\n{fault}")

    def read(fqn: str, box: Box, out: torch.Tensor) -> None:
        place = stored(fqn, params[fqn])
        inner = stored_box(place, box)
        read_box(reader, best_key(reader, place.key, out.dtype), inner, out.view(inner.shape))

    return read


def best_key(reader: Reader, key: str, dtype: torch.dtype) -> str:
    """Where to read a parameter that is wanted in ``dtype``: the optimizer's fp32 copy if fp32 is, and there is one."""
    master = optimizer_key("fp32_param", key)
    return master if dtype == torch.float32 and master in reader.index.tensors else key
