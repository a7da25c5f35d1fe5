"""Folders of Hugging Face weights, opened: safetensors or torch's ``.bin``, in one file or in many."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from ridgeline.checkpoint.io.mapped import FileTensor, check_inside, tensor_of
from ridgeline.checkpoint.io.quantised import dequantised
from ridgeline.checkpoint.io.safetensors import read_safetensors
from ridgeline.checkpoint.io.sources import Opened, check_tensors, weights_in
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.pieces import Holder
from ridgeline.checkpoint.published import published_buffers
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_names import hf_derived

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"


def open_hf(folder: str | Path, model: ModelSpec) -> Opened:
    """The weights of a model in a folder; those of 8 and 4 bits are read as bf16.

    Raises:
        CheckpointError: As of ``hf_tensors``, or tensors are missing, of wrong shape or not of this
            model; all are named.
    """
    folder = Path(folder)
    found = dequantised(hf_tensors(folder))
    derived = hf_derived(model)
    dropped = tuple(name for name in found if name in derived)
    buffers = published_buffers(model)
    held = {name: tensor for name, tensor in found.items() if name not in dropped}
    holder = Holder(folder.name, buffers)
    check_tensors(folder, model, [holder], held)
    tensors = {(holder.name, name): tensor for name, tensor in held.items()}
    return Opened("hf", folder, model, (holder,), tensors, dropped, files=tuple(weight_files(folder)))


def hf_weights(folder: str | Path, model: ModelSpec) -> Weights:
    """A model's weights in a folder, as one function that reads a box of a parameter.

    Raises:
        CheckpointError: As of ``open_hf``.
    """
    return weights_in(open_hf(folder, model))


def hf_tensors(folder: str | Path) -> Mapping[str, FileTensor]:
    """Every tensor of a folder, by name; nothing of them is read yet.

    Raises:
        CheckpointError: No weights are there, or a file is absent, cut short, damaged or holds code.
    """
    folder = Path(folder)
    tensors: dict[str, FileTensor] = {}
    for path in weight_files(folder):
        found = read_safetensors(path, folder) if path.suffix == ".safetensors" else _read_bin(path, folder)
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


def _read_bin(path: Path, folder: Path) -> dict[str, FileTensor]:
    check_inside(path, folder)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the bytes make it
        raise CheckpointError(f"file={path}: is damaged, of an old format or holds code: {error}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
        raise CheckpointError(f"file={path}: holds more than named tensors: refused")
    return {name: tensor_of(tensor) for name, tensor in tensors.items()}
