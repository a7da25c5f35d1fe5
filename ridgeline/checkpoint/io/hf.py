"""Folders of Hugging Face weights, opened: safetensors or torch's ``.bin``, in one file or in many."""

from collections.abc import Mapping
from pathlib import Path

from ridgeline.checkpoint.io.json_file import read_json
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.quantised import dequantised
from ridgeline.checkpoint.io.safetensors import read_safetensors
from ridgeline.checkpoint.io.sources import Opened, check_tensors, weights_in
from ridgeline.checkpoint.io.torch_file import read_torch_file
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.pieces import Holder
from ridgeline.checkpoint.published import published_buffers
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_names import hf_derived, hf_full_names

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"


def open_hf(folder: str | Path, model: ModelSpec) -> Opened:
    """The weights of a model in a folder; those of 8 and 4 bits are read as bf16.

    Raises:
        CheckpointError: As of ``hf_tensors``, or tensors are missing, of wrong shape or not of this
            model; all are named.
    """
    folder = Path(folder)
    found = dequantised(hf_tensors(folder))
    full = hf_full_names(model, found)
    found = {full[name]: tensor for name, tensor in found.items()}
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
    rule = f"holds neither {SAFETENSORS} nor {BIN}, nor an index of either" if folder.is_dir() else "is no folder"
    raise CheckpointError(f"folder={folder}: {rule}; name a folder of Hugging Face weights")


def _indexed(index: Path) -> list[Path]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"file={index}: is no index of weights: its weight_map names no files")
    names = sorted(set(where.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"file={index}: names {name!r}, which is no file of its folder: refused")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"file={index}: names files that are absent: {', '.join(absent)}; fetch them too")
    return [index.parent / name for name in names]


def _read_bin(path: Path, folder: Path) -> dict[str, FileTensor]:
    tensors = read_torch_file(path, folder)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"file={path}: holds a {type(tensors).__name__}, expected tensors by name: refused")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, FileTensor):
            rule = f"holds {name!r}, a {type(tensor).__name__}, expected tensors by name: refused"
            raise CheckpointError(f"file={path}: {rule}; save the weights alone")
    return tensors
