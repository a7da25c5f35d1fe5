"""Checkpoints in Megatron-core's ``torch_dist`` format, opened as buffers: ours, and those of Megatron-LM itself.

Megatron-LM's own keep all equal layers in one tensor, and name a norm after the layer behind it under Transformer
Engine. Both are read as what we would have stored.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from ridgeline.checkpoint.boxes import Box, meeting, whole, within
from ridgeline.checkpoint.classic_optimizer import MASTER, MOMENTS
from ridgeline.checkpoint.io.adapter_runs import with_merged_adapters
from ridgeline.checkpoint.io.classic_training import settings_of
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.recorded import open_record
from ridgeline.checkpoint.io.sources import Opened, Training, dtype_faults, unlike, weights_in
from ridgeline.checkpoint.io.torch_dist.index import Chunk
from ridgeline.checkpoint.io.torch_dist.reader import Reader, chunk_data, open_checkpoint
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.names import adapted_params, optimizer_key, params_of, stored
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, row_major
from ridgeline.checkpoint.published import names_fault
from ridgeline.checkpoint.record import RECORD, Record, model_of
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec

TE_NAMES = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)


def open_dist(
    folder: Path, *, model: ModelSpec | None = None, masters: bool = False, optimizer: bool = False
) -> Opened:
    """The weights of a saved step; those of a run with adapters are merged.

    Args:
        folder: Of one step.
        model: Whose weights they are; by default what the step's record says.
        masters: Read the optimizer's fp32 copies where there are any.
        optimizer: Open the optimizer's state too, and where its run stands.

    Raises:
        CheckpointError: It is none, says of no model, is damaged, or lacks tensors; all are named.
    """
    record = open_record(folder) if (folder / RECORD).is_file() else None
    model = model or (model_of(record) if record else None)
    if model is None:
        raise CheckpointError(f"checkpoint={folder}: does not say whose weights it holds; name the model: --model")
    adapter = record.job.adapter if record and record.job else None
    if adapter is not None and optimizer:
        rule = "is of a run with adapters, whose optimizer's state is of them alone"
        raise CheckpointError(f"checkpoint={folder}: {rule}; leave out --optimizer")
    params = params_of(model) if adapter is None else adapted_params(model, adapter)
    reader = open_checkpoint(folder)
    shapes = {place.key: place.shape for place in (stored(fqn, param) for fqn, param in params.items())}
    if optimizer:
        shapes |= dict(_optimizer_shapes(reader, model))
    found: dict[str, list[tuple[str, Chunk, int | None]]] = {}
    for key in shapes:
        for chosen, layer in _candidates(key, masters=masters):
            if chosen in reader.index.tensors:
                found[key] = [(chosen, chunk, layer) for chunk in reader.index.tensors[chosen].chunks]
                break
    there = ((key, _shape_of(reader, parts[0], shapes[key])) for key, parts in found.items())
    dtypes = ((key, reader.index.tensors[parts[0][0]].dtype) for key, parts in found.items())
    if faults := (*names_fault(there, shapes.items(), ()), *dtype_faults(dtypes)):
        raise CheckpointError(unlike(f"checkpoint={folder}", model, faults))
    buffers: dict[str, dict[str, tuple[Buffer, FileTensor]]] = {}
    for key, parts in found.items():
        for chosen, chunk, layer in parts:
            for piece in _pieces(key, shapes[key], chunk.box, layer):
                name = f"{chosen}{chunk.box}"
                buffer = Buffer(name if layer is None else f"{name} layer {layer}", chunk.box.shape, (piece,))
                tensor = _tensor(reader, chosen, chunk)
                buffers.setdefault(chunk.file, {})[buffer.name] = (buffer, tensor)
    holders = tuple(Holder(file, tuple(b for b, _ in held.values())) for file, held in buffers.items())
    tensors = {(file, name): tensor for file, held in buffers.items() for name, (_, tensor) in held.items()}
    files = tuple(folder / file for file in buffers)
    training = _training(folder, record, mixed=any(_is_master(key) for key in shapes)) if optimizer else None
    opened = Opened("torch_dist", folder, model, holders, tensors, record=record, files=files, training=training)
    return opened if adapter is None else with_merged_adapters(opened, adapter)


def checkpoint_weights(folder: str | Path, model: ModelSpec) -> Weights:
    """A model's weights in a saved step; in fp32 where it has them so and fp32 is asked for.

    Raises:
        CheckpointError: As of ``open_dist``.
    """
    plain, precise = (weights_in(open_dist(Path(folder), model=model, masters=masters)) for masters in (False, True))

    def read(fqn: str, box: Box, out: torch.Tensor) -> None:
        (precise if out.dtype == torch.float32 else plain)(fqn, box, out)

    return read


def _optimizer_shapes(reader: Reader, model: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the optimizer keeps of each trained parameter: moments, and a master where the checkpoint has one."""
    for fqn, param in params_of(model).items():
        place = stored(fqn, param)
        for part in (MASTER, *MOMENTS) if param.trains else ():
            key = optimizer_key(part, place.key)
            if part != MASTER or key in reader.index.tensors:
                yield key, place.shape


def _is_master(key: str) -> bool:
    return key.startswith(optimizer_key(MASTER, ""))


def _training(folder: Path, record: Record | None, *, mixed: bool) -> Training:
    if record is None or record.job is None:
        rule = "does not say how it was trained, which its optimizer's state needs beside it"
        raise CheckpointError(f"checkpoint={folder}: {rule}; convert its weights alone")
    settings, scheduler = settings_of(record.job)
    return Training(
        step=record.step,
        updates=record.optimizer_step,
        consumed_samples=record.consumed_samples,
        mixed=mixed,
        settings=settings,
        scheduler={**scheduler, "num_steps": record.consumed_samples},
    )


def _candidates(key: str, *, masters: bool) -> Iterator[tuple[str, int | None]]:
    """Under which keys a tensor may stand, the best first; with its layer, where one tensor holds all layers."""
    if masters:
        yield optimizer_key("fp32_param", key), None
    yield key, None
    names = [key, *(key.replace(ours, theirs) for theirs, ours in TE_NAMES if key.endswith(ours))]
    for name in names:
        yield name, None
        if layer := re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name):
            yield f"decoder.layers.{layer[2]}", int(layer[1])


def _shape_of(reader: Reader, part: tuple[str, Chunk, int | None], expected: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a stored tensor, one layer of it, without padding of the vocabulary."""
    key, _, layer = part
    shape = reader.index.tensors[key].shape
    shape = shape if layer is None else shape[1:]
    is_padded = key in ("embedding.word_embeddings.weight", "output_layer.weight")
    return expected if is_padded and shape[1:] == expected[1:] and shape[0] >= expected[0] else shape


def _pieces(key: str, shape: tuple[int, ...], box: Box, layer: int | None) -> Iterator[Piece]:
    """What a chunk holds of a tensor: all of it but padding, or the one layer that is asked for."""
    strides, start = row_major(box.shape), 0
    if layer is not None:
        if not box.offset[0] <= layer < box.offset[0] + box.shape[0]:
            return
        start = (layer - box.offset[0]) * strides[0]
        box, strides = Box(box.offset[1:], box.shape[1:]), strides[1:]
    if (real := meeting(box, whole(shape)) if shape else box) is not None:
        start += sum(a * stride for a, stride in zip(within(real, box).offset, strides, strict=True))
        yield Piece(key, real, start, strides)


def _tensor(reader: Reader, key: str, chunk: Chunk) -> FileTensor:
    return FileTensor(reader.index.tensors[key].dtype, chunk.box.shape, functools.partial(_strided, reader, key, chunk))


def _strided(
    reader: Reader, key: str, chunk: Chunk, start: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> torch.Tensor:
    data = chunk_data(reader, key, chunk)
    return data.as_strided(shape, strides, data.storage_offset() + start)
