"""LoRA adapters in PEFT's format: written, read, and merged into weights while these are read.

    adapter_config.json         r, lora_alpha, target_modules, ...
    adapter_model.safetensors   base_model.model.NAME.lora_A.weight (r, inputs), .lora_B.weight (outputs, r)

A merged tensor is ``W + alpha/r * B A``, computed for just the rows and columns that are read: so it goes into any
format and layout at no cost of memory. An adapter of a fused layer of ours (``linear_qkv``, ``linear_fc1``) is one on
each published layer in it, with the same A and the rows of B that are its.

Source:
    arXiv 2106.09685, section 4.1; huggingface/peft 0.21, tuners/lora/config.py and utils/save_and_load.py.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.io.folders import whole_folder, write_file
from ridgeline.checkpoint.io.json_file import read_json
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.quantised import places
from ridgeline.checkpoint.io.safetensors import Entry, read_safetensors, write_safetensors
from ridgeline.checkpoint.io.sources import Opened
from ridgeline.checkpoint.names import params_of
from ridgeline.checkpoint.pieces import row_major
from ridgeline.checkpoint.published import runs_of
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_names import hf_sources
from ridgeline.models.hf_source import Stacked, StackedRows, Transposed, published_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_pattern",
)
"""Fields that would change what is added, and that must be off."""

TRANSPOSED = "is published transposed, and an adapter of such a matrix is neither written nor merged"


@attrs.frozen(eq=False)
class Adapter:
    """What is added to matrices, by their names without ``.weight``.

    Attributes:
        scale: alpha/r, or alpha over the root of r.
        pairs: A (r, inputs) and B (outputs, r) of each.
    """

    scale: float
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def read_adapter(folder: str | Path) -> Adapter:
    """An adapter in PEFT's format.

    Raises:
        CheckpointError: A file is missing or damaged, an A has no B, or it adds something other than B A.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    if on := [name for name in UNSUPPORTED if config.get(name)]:
        raise CheckpointError(f"adapter={folder}: {on[0]}={config[on[0]]!r}: cannot be merged; only plain LoRA can")
    tensors = read_safetensors(folder / WEIGHTS, folder)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not module or part not in ("A.weight", "B.weight"):
            raise CheckpointError(f"adapter={folder}: {name}: is no part of a plain LoRA adapter")
        pairs.setdefault(module, {})[part[0]] = tensor.strided(0, tensor.shape, row_major(tensor.shape)).clone()
    rank = config["r"]
    for module, pair in pairs.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise CheckpointError(f"adapter={folder}: {module}: needs an A and a B of rank {rank}")
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(scale, {module: (pair["A"], pair["B"]) for module, pair in pairs.items()})


def write_adapter(
    folder: str | Path,
    model: ModelSpec,
    fused: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    alpha: float,
    base: str = "",
) -> None:
    """Write adapters of our layers in PEFT's format, as one on each published layer in them.

    Args:
        folder: To make.
        model: Whose layers they are.
        fused: A (r, inputs) and B (outputs, r) of each, by the weight's full name.
        alpha: What B A is multiplied with, times r.
        base: Name of the model that they belong to.

    Raises:
        CheckpointError: ``folder`` exists, or an adapter fits no layer.
    """
    sources, params, pairs = hf_sources(model), params_of(model), {}
    ranks = {a.shape[0] for a, _ in fused.values()}
    if len(ranks) != 1:
        raise CheckpointError(f"adapter={folder}: has ranks {sorted(ranks)}; PEFT's format here has one")
    for fqn, (a, b) in fused.items():
        if fqn not in params or (b.shape[0], a.shape[1]) != params[fqn].shape:
            raise CheckpointError(
                f"adapter={folder}: {fqn}: is no matrix of {b.shape[0]} by {a.shape[1]} of this model"
            )
        rows: dict[str, list[torch.Tensor]] = {}
        source = sources[fqn]
        if isinstance(source, (Stacked, StackedRows)):
            stack = source.name if isinstance(source, Stacked) else " and ".join(source.names)
            rule = f"lies in a stack of {source.experts} experts, {stack}, which PEFT adapts as a whole"
            raise CheckpointError(f"adapter={folder}: {fqn}: {rule}")
        if isinstance(source, Transposed):
            raise CheckpointError(f"adapter={folder}: {fqn}: {TRANSPOSED}")
        for run, box in runs_of(source, params[fqn].shape):
            rows.setdefault(run.tensor, []).append(b[box.offset[0] : box.offset[0] + run.count])
        pairs |= {name.removesuffix(".weight"): (a, torch.cat(parts)) for name, parts in rows.items()}
    tensors = {
        f"{PREFIX}{name}.lora_{part}.weight": tensor.contiguous()
        for name, pair in pairs.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in pairs}),
    }
    with whole_folder(Path(folder)) as temporary:
        write_file(temporary / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
        write_safetensors(temporary / WEIGHTS, entries, tensors.values())


def merged(opened: Opened, adapter: Adapter) -> Opened:
    """An opened Hugging Face folder with an adapter merged into what is read of it.

    Raises:
        CheckpointError: The folder is of another format, lacks a matrix of the adapter, or has one transposed.
    """
    if opened.format != "hf":
        rule = "is no Hugging Face folder, whose matrices an adapter is for"
        raise CheckpointError(f"source={opened.folder}: {rule}; convert it with --format hf first")
    tensors = dict(opened.tensors)
    by_name = {name: (holder, name) for holder, name in tensors}
    params, sources = params_of(opened.model), hf_sources(opened.model)
    turned = {
        name
        for fqn, source in sources.items()
        if isinstance(source, Transposed)
        for name in published_shapes(source, params[fqn].shape)
    }
    for module, (a, b) in adapter.pairs.items():
        if f"{module}.weight" in turned:
            raise CheckpointError(f"adapter: {module}: {TRANSPOSED}")
        key = by_name.get(f"{module}.weight")
        if key is None or tensors[key].shape != (b.shape[0], a.shape[1]):
            raise CheckpointError(f"adapter: {module}: {opened.folder} holds no matrix of {b.shape[0]} by {a.shape[1]}")
        tensors[key] = plus_product(tensors[key], a.float() * adapter.scale, b.float())
    return attrs.evolve(opened, tensors=tensors)


def plus_product(weight: FileTensor, a: torch.Tensor, b: torch.Tensor) -> FileTensor:
    """A matrix plus B A, computed for what is read of it."""

    def strided(start: int, shape: Shape, strides: Shape) -> torch.Tensor:
        rows, columns = places(start, shape, strides, weight.shape[-1])
        added = b[rows.reshape(-1)] @ a[:, columns.reshape(-1)]
        # Of a matrix as it lies rows come first, of a transposed one columns.
        turned = added.T if _first_varying(columns) < _first_varying(rows) else added
        plain = weight.strided(start, shape, strides)
        return (plain.float() + turned.reshape(shape)).to(weight.dtype)

    return FileTensor(weight.dtype, weight.shape, strided)


def _first_varying(index: torch.Tensor) -> int:
    return next((dim for dim, size in enumerate(index.shape) if size > 1), index.dim())


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    try:
        if config["peft_type"] != "LORA" or config["r"] < 1:
            raise ValueError(f"peft_type={config['peft_type']!r}, r={config['r']}")
        float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"file={path}: is no config of a LoRA adapter: {type(error).__name__}: {error}"
        ) from error
    return config
