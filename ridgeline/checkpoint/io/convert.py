"""From a checkpoint to a Hugging Face folder and back: memory holds one tensor at a time, and no ranks are needed."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from ridgeline.checkpoint.boxes import Shape, cut, slices, whole
from ridgeline.checkpoint.io.folders import whole_folder, write_file
from ridgeline.checkpoint.io.hf import SAFETENSORS, hf_weights, open_hf
from ridgeline.checkpoint.io.recorded import find_checkpoint, open_record, write_record
from ridgeline.checkpoint.io.safetensors import Entry, write_safetensors
from ridgeline.checkpoint.io.torch_dist import (
    NOTHINGS,
    TensorItem,
    write_frame,
    write_index,
    write_items,
    write_nothings,
)
from ridgeline.checkpoint.io.weights import Weights, checkpoint_weights
from ridgeline.checkpoint.names import extra_state_keys, params_of, stored, stored_box
from ridgeline.checkpoint.published import copies_of, plan_files
from ridgeline.checkpoint.record import Record, model_of
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import hf_config_of, model_from_hf, read_hf_config
from ridgeline.models.hf_names import hf_sources
from ridgeline.models.hf_source import Source, published_shapes, row_runs

Dtype = Literal["bf16", "fp16", "fp32"]
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)

FILE_BYTES = 5_000_000_000
PIECE_BYTES = 1 << 28


def export_hf(
    checkpoint: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: Dtype | None = None,
    max_file_bytes: int = FILE_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a saved step as a Hugging Face folder that transformers loads.

    Args:
        checkpoint: Folder of one saved step, or of a run: then its latest.
        out: Folder to make; it appears when it is whole.
        tokenizer: Folder whose tokenizer is put beside the weights, or its ``tokenizer.json``; by default the job's.
        dtype: Of the weights; by default that of training. fp32 is read from the optimizer's copies.
        max_file_bytes: Size of a file of weights.
        progress: Told of every tensor.

    Raises:
        CheckpointError: The checkpoint is damaged, ``out`` exists, or the disk is full.
        SpecError: The model's family has no Hugging Face class.
    """
    step = find_checkpoint(checkpoint)
    record = open_record(step)
    model = model_of(record)
    config = hf_config_of(model)
    name = dtype or (record.job.precision.params if record.job else "bf16")
    weights = checkpoint_weights(step, model)
    tokenizer = tokenizer or (record.job.data.tokenizer if record.job else None)
    with whole_folder(Path(out)) as folder:
        if tokenizer:
            copy_tokenizer(tokenizer, folder)
        config |= {"dtype": str(DTYPES[name]).removeprefix("torch."), **token_ids(folder)}
        write_file(folder / "config.json", _json(config))
        write_hf_weights(folder, model, weights, DTYPES[name], max_file_bytes=max_file_bytes, progress=progress)


def import_hf(
    hf_folder: str | Path, out: str | Path, *, dtype: Dtype | None = None, progress: Progress | None = None
) -> None:
    """Write a Hugging Face folder as a checkpoint of weights, which any layout starts from.

    Args:
        hf_folder: Folder of a supported family, with its weights.
        out: Folder to make; it appears when it is whole.
        dtype: Of the weights; by default each tensor keeps its own.
        progress: Told of every tensor.

    Raises:
        CheckpointError: The weights are damaged or do not fit the config, ``out`` exists, or the disk is full.
        SpecError: The config is none that is known.
    """
    model = model_from_hf(read_hf_config(hf_folder), name=Path(hf_folder).resolve().name)
    weights = hf_weights(hf_folder, model)
    published, params = open_hf(hf_folder), params_of(model)
    dtypes = {
        fqn: DTYPES[dtype] if dtype else published[row_runs(source, params[fqn].shape[0])[0].tensor].dtype
        for fqn, source in hf_sources(model).items()
    }
    with whole_folder(Path(out)) as folder:
        written = write_items(folder / "__0_0.distcp", _items_of(model, weights, dtypes, progress))
        write_index(folder, (*written, *write_nothings(folder / NOTHINGS, extra_state_keys(model))))
        write_frame(folder, {"iteration": 0})
        write_record(folder, Record(step=0, model=model))


def write_hf_weights(
    folder: Path,
    model: ModelSpec,
    weights: Weights,
    dtype: torch.dtype,
    *,
    max_file_bytes: int = FILE_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a model's weights as safetensors, with an index if they take several files."""
    shapes = {fqn: param.shape for fqn, param in params_of(model).items()}
    made_of = [
        (Entry(name, dtype, shape), fqn, source)
        for fqn, source in hf_sources(model).items()
        for name, shape in published_shapes(source, shapes[fqn]).items()
    ]
    total, done = sum(entry.bytes for entry, *_ in made_of), 0
    files = plan_files([entry.bytes for entry, *_ in made_of], max_bytes=max_file_bytes)
    for file in files:
        rows = [made_of[index] for index in file.tensors]
        tensors = (_published(entry, fqn, source, shapes[fqn], weights) for entry, fqn, source in rows)
        write_safetensors(folder / file.name, [entry for entry, *_ in rows], tensors)
        done += sum(entry.bytes for entry, *_ in rows)
        if progress:
            progress(done, total)
    if len(files) > 1:
        where = {made_of[index][0].name: file.name for file in files for index in file.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_file(folder / f"{SAFETENSORS}.index.json", _json(index))


def copy_tokenizer(tokenizer: str | Path, folder: Path) -> None:
    """Copy a tokenizer's files, from its folder or from beside its ``tokenizer.json``.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(tokenizer)
    source = path.parent if path.is_file() else path
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise CheckpointError(f"tokenizer={tokenizer}: holds none of {', '.join(TOKENIZER_FILES)}")
    for file in found:
        shutil.copyfile(file, folder / file.name)


def token_ids(folder: Path) -> dict[str, int]:
    """What a config says of tokens, from the tokenizer in a folder: the ids that begin, end and pad a text."""
    settings = _read_json(folder / "tokenizer_config.json")
    known = {token["content"]: token["id"] for token in _read_json(folder / "tokenizer.json").get("added_tokens", ())}
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if content in known:
            ids[f"{name}_id"] = known[content]
    return ids


def _published(entry: Entry, fqn: str, source: Source, shape: Shape, weights: Weights) -> torch.Tensor:
    """One published tensor, gathered from the rows of ours."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    for copy in copies_of(source, shape, whole(shape)):
        if copy.tensor == entry.name:
            weights(fqn, copy.ours, tensor[slices(copy.published)])
    return tensor


def _items_of(
    model: ModelSpec, weights: Weights, dtypes: Mapping[str, torch.dtype], progress: Progress | None
) -> Iterator[TensorItem]:
    """A model's weights as what a checkpoint stores, in pieces of whole rows."""
    params = params_of(model)
    total, done = sum(math.prod(param.shape) * dtypes[fqn].itemsize for fqn, param in params.items()), 0
    for fqn, param in params.items():
        place, row = stored(fqn, param), math.prod(param.shape[1:])
        rows = max(1, PIECE_BYTES // (row * dtypes[fqn].itemsize))
        for box in cut(whole(param.shape), rows * row):
            data = torch.empty(box.shape, dtype=dtypes[fqn])
            weights(fqn, box, data)
            inner = stored_box(place, box)
            yield TensorItem(place.key, place.shape, inner, data.view(inner.shape))
            done += data.nbytes
        if progress:
            progress(done, total)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
