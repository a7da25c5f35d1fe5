"""Folders of Hugging Face weights, read by slices: safetensors or torch's ``.bin``, in one file or in many."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open

from ridgeline.checkpoint.boxes import Box, Shape, slices
from ridgeline.checkpoint.io.safetensors import DTYPES
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.names import params_of
from ridgeline.checkpoint.published import copies_of, names_fault
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_names import hf_derived, hf_shapes, hf_sources

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"


@attrs.frozen
class HfTensor:
    """A tensor in a folder; ``read`` copies a box of it out of its file."""

    shape: Shape
    dtype: torch.dtype
    read: Callable[[Box], torch.Tensor] = attrs.field(repr=False)


def open_hf(folder: str | Path) -> Mapping[str, HfTensor]:
    """Every tensor of a folder, by name; nothing of them is read yet.

    Raises:
        CheckpointError: No weights are there, or a file is absent, cut short, damaged or holds code.
    """
    folder = Path(folder)
    tensors: dict[str, HfTensor] = {}
    for path in weight_files(folder):
        found = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
        if twice := tensors.keys() & found.keys():
            raise CheckpointError(f"file={path}: holds {min(twice)}, as another file of {folder} does")
        tensors.update(found)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights.

    Raises:
        CheckpointError: There are none, or the index names one that is absent.
    """
    for name in (SAFETENSORS, BIN):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / name).is_file():
            return [folder / name]
    rule = f"holds neither {SAFETENSORS} nor {BIN}, nor an index of either"
    raise CheckpointError(f"folder={folder}: {rule}; name a folder of Hugging Face weights")


def hf_weights(folder: str | Path, model: ModelSpec) -> Weights:
    """A model's weights in a folder.

    Raises:
        CheckpointError: As of ``open_hf``, or tensors are missing, of wrong shape or not of this model; all are named.
    """
    tensors = open_hf(folder)
    found = ((name, tensor.shape) for name, tensor in tensors.items())
    if fault := names_fault(found, hf_shapes(model).items(), hf_derived(model)):
        raise CheckpointError(f"folder={folder}: does not hold the weights of model={model.name!r}:\n{fault}")
    sources, params = hf_sources(model), params_of(model)

    def read(fqn: str, box: Box, out: torch.Tensor) -> None:
        row = 0
        for copy in copies_of(sources[fqn], params[fqn].shape, box):
            count = copy.ours.shape[0]
            out[row : row + count].copy_(tensors[copy.tensor].read(copy.published))
            row += count

    return read


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"file={index}: is no index of weights: {type(error).__name__}: {error}") from error
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"file={index}: names {name!r}, which lies outside of its folder: refused")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"file={index}: names files that are absent: {', '.join(absent)}")
    return [index.parent / name for name in names]


def _open_safetensors(path: Path) -> dict[str, HfTensor]:
    try:
        file = safe_open(path, "pt")
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except SafetensorError as error:
        raise CheckpointError(f"file={path}: is damaged or cut short: {error}") from error
    return {
        name: HfTensor(tuple(part.get_shape()), _dtype_of(part, name, path), functools.partial(_read_slice, part))
        for name, part in parts.items()
    }


def _dtype_of(part: Any, name: str, path: Path) -> torch.dtype:
    for dtype, word in DTYPES.items():
        if word == part.get_dtype():
            return dtype
    raise CheckpointError(f"file={path}: {name} is of dtype {part.get_dtype()}; known: {', '.join(DTYPES.values())}")


def _read_slice(part: Any, box: Box) -> torch.Tensor:
    return part[slices(box)]


def _open_bin(path: Path) -> dict[str, HfTensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the bytes make it
        raise CheckpointError(f"file={path}: is damaged, of an old format or holds code: {error}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
        raise CheckpointError(f"file={path}: holds more than named tensors: refused")
    return {
        name: HfTensor(tuple(tensor.shape), tensor.dtype, functools.partial(_read_tensor, tensor))
        for name, tensor in tensors.items()
    }


def _read_tensor(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    return tensor[slices(box)]
