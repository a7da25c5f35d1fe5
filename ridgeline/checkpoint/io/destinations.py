"""The files of each format: what is in them, how they are written, and what stands beside them when all are."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, TypeAlias

import attrs
import torch

from ridgeline.checkpoint.boxes import Box, cut, whole
from ridgeline.checkpoint.classic import (
    POINTER,
    VERSION,
    ClassicForm,
    classic_arguments,
    classic_holders,
    lay_out,
    name_in_file,
)
from ridgeline.checkpoint.classic_optimizer import MASTER, MOMENTS, check_ordered, optimizers_of, state_buffer
from ridgeline.checkpoint.io.classic_training import training_frame
from ridgeline.checkpoint.io.execute import OutFile
from ridgeline.checkpoint.io.folders import flush, write_file
from ridgeline.checkpoint.io.hf import SAFETENSORS
from ridgeline.checkpoint.io.json_file import read_json
from ridgeline.checkpoint.io.manifest import JOURNAL, WrittenFile
from ridgeline.checkpoint.io.recorded import write_record
from ridgeline.checkpoint.io.safetensors import Entry, Stored, stream_safetensors
from ridgeline.checkpoint.io.sources import Opened
from ridgeline.checkpoint.io.tensor_zip import write_chunks
from ridgeline.checkpoint.io.torch_dist.index import NOTHINGS
from ridgeline.checkpoint.io.torch_dist.writer import Written, write_frame, write_index, write_nothings
from ridgeline.checkpoint.io.torch_file import stored as stand_ins
from ridgeline.checkpoint.io.torch_file import stream_torch_file
from ridgeline.checkpoint.names import extra_state_keys, optimizer_key, params_of, stored
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, row_major
from ridgeline.checkpoint.published import plan_files, published_buffers
from ridgeline.checkpoint.record import RECORD, Record, record_text
from ridgeline.checkpoint.reshard import Fill, reshard
from ridgeline.core.errors import CheckpointError
from ridgeline.core.layout import Layout
from ridgeline.models.hf_config import hf_config_of

Dtype: TypeAlias = Literal["bf16", "fp16", "fp32"]

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
)
MIN_FILE_BYTES, MAX_FILE_BYTES = 500_000_000, 5_000_000_000
FILES_AT_ONCE = 8
PIECE_BYTES = 1 << 28

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


@attrs.frozen(eq=False)
class Destination:
    """A folder to be.

    Attributes:
        files: Of weights.
        finish: Writes what stands beside them, given the folder and what was written.
    """

    files: tuple[OutFile, ...]
    finish: Callable[[Path, Sequence[WrittenFile]], None] = attrs.field(repr=False)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(file.bytes for file in self.files)

    @property
    def copies(self) -> int:
        """Slice copies in all."""
        return sum(len(fill.copies) for file in self.files for fill in file.fills)


def hf_destination(
    opened: Opened, *, dtype: Dtype | None, max_file_bytes: int | None, tokenizer: str | Path | None
) -> Destination:
    """A Hugging Face folder that transformers loads.

    Raises:
        SpecError: The model's family has no Hugging Face class.
        CheckpointError: The source lacks a part, or the tokenizer is damaged or not there.
    """
    beside = () if tokenizer is None else tokenizer_files(tokenizer)
    config = hf_config_of(opened.model) | (token_ids(beside[0].parent) if beside else {})
    holder = Holder("hf", published_buffers(opened.model))
    planned = _planned(opened, (holder,), dtype)["hf"]
    file_sizes = [entry.bytes for entry, _ in planned]
    groups = plan_files(file_sizes, max_bytes=max_file_bytes or usual_file_bytes(sum(file_sizes)))
    files = tuple(_out(group.name, [planned[index] for index in group.tensors], _write_hf) for group in groups)
    sizes = {}
    for entry, _ in planned:
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.bytes
    commonest = max(sizes, key=lambda dtype: sizes[dtype])

    def finish(folder: Path, written: Sequence[WrittenFile]) -> None:
        for file in beside:
            shutil.copyfile(file, folder / file.name)
            flush(folder / file.name)
        filled = config | {"dtype": str(commonest).removeprefix("torch.")}
        write_file(folder / "config.json", _json(filled))
        if len(files) > 1:
            where = {entry.name: file.name for file in files for entry in file.entries}
            total = sum(file.bytes for file in files)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_file(folder / f"{SAFETENSORS}.index.json", _json(index))

    return Destination(files, finish)


def dist_destination(opened: Opened, *, dtype: Dtype | None, max_file_bytes: int | None) -> Destination:
    """A checkpoint of weights in Megatron-core's ``torch_dist`` format, which any layout starts from.

    Raises:
        CheckpointError: The source lacks a part.
    """
    boxes = {f"{key}{box}": (key, shape, box) for key, shape, box in _dist_boxes(opened)}
    buffers = (
        Buffer(name, box.shape, (Piece(key, box, 0, row_major(box.shape)),)) for name, (key, _, box) in boxes.items()
    )
    planned = _planned(opened, (Holder("dist", tuple(buffers)),), dtype)["dist"]
    file_sizes = [entry.bytes for entry, _ in planned]
    groups = plan_files(file_sizes, max_bytes=max_file_bytes or usual_file_bytes(sum(file_sizes)))
    files = tuple(
        _out(f"__0_{number}.distcp", [planned[index] for index in group.tensors], _write_dist)
        for number, group in enumerate(groups)
    )
    dtypes = {entry.name: entry.dtype for entry, _ in planned}

    def finish(folder: Path, written: Sequence[WrittenFile]) -> None:
        parts = [
            Written(boxes[t.name][0], file.name, *t.span, dtypes[t.name], *boxes[t.name][1:])
            for file in written
            for t in file.tensors
            if t.span
        ]
        write_index(folder, (*parts, *write_nothings(folder / NOTHINGS, extra_state_keys(opened.model))))
        record = record_of(opened)
        write_frame(folder, {"iteration": record.step, "optimizer_step": record.optimizer_step})
        write_record(folder, record, without=(JOURNAL,))

    return Destination(files, finish)


def classic_destination(opened: Opened, *, layout: Layout, form: ClassicForm, dtype: Dtype | None) -> Destination:
    """A checkpoint in the classic per-rank layout.

    Raises:
        PlanError: The layout does not fit the model.
        CheckpointError: The source lacks a part.
    """
    laid, training, mtp = lay_out(opened.model, layout), opened.training, opened.model.mtp > 0
    weights = classic_holders(laid, form)
    step = training.step if training else 1
    arguments = {**classic_arguments(opened.model, laid, form), "iteration": step}
    if training:
        check_ordered(opened.model, form)
        arguments["consumed_train_samples"] = training.consumed_samples
    holders = [_with_state(opened, holder) for holder in weights] if training else weights
    planned = _planned(opened, holders, dtype)

    def file_of(holder: Holder) -> OutFile:
        buffers = holder.buffers

        def write(stream: BinaryIO, entries: Sequence[Entry], chunks: Iterator[Iterator[memoryview]]) -> list[Stored]:
            frame: dict[str, Any] = {
                "args": argparse.Namespace(**arguments),
                "checkpoint_version": VERSION,
                "iteration": step,
            }
            tensors = dict(zip((entry.name for entry in entries), stand_ins(entries), strict=True))
            for buffer in buffers:
                chunk, _, name = buffer.name.partition("/")
                frame.setdefault(chunk, {})[name_in_file(name, form, mtp=mtp)] = tensors[buffer.name]
            if training:
                frame |= training_frame(optimizers_of(opened.model, buffers, ep=layout.ep), tensors, training)
            return stream_torch_file(stream, frame, entries, chunks)

        return _out(f"iter_{step:07d}/{holder.name}", planned[holder.name], write)

    files = tuple(map(file_of, weights))

    def finish(folder: Path, written: Sequence[WrittenFile]) -> None:
        write_file(folder / RECORD, record_text(record_of(opened)).encode())
        write_file(folder / POINTER, str(step).encode())

    return Destination(files, finish)


def record_of(opened: Opened) -> Record:
    """What a folder made of another one says of itself."""
    training = opened.training
    if training is None:
        return Record(step=0, model=opened.model)
    return Record(
        step=training.step,
        optimizer_step=training.updates,
        consumed_samples=training.consumed_samples,
        model=opened.model,
    )


def usual_file_bytes(total: int) -> int:
    """How large a file of weights is where nobody says: several can be written at a time, none is tiny or huge.

    Example:
        >>> usual_file_bytes(2_500_000_000), usual_file_bytes(16_000_000_000), usual_file_bytes(10**12)
        (500000000, 2000000000, 5000000000)
    """
    return max(MIN_FILE_BYTES, min(MAX_FILE_BYTES, total // FILES_AT_ONCE))


def tokenizer_files(tokenizer: str | Path) -> list[Path]:
    """The files of a tokenizer, in its folder or beside its ``tokenizer.json``.

    Raises:
        CheckpointError: There are none.
    """
    path = Path(tokenizer)
    if found := files_of_tokenizer(path.parent if path.is_file() else path):
        return found
    rule = f"holds none of {', '.join(TOKENIZER_FILES)}"
    raise CheckpointError(f"tokenizer={tokenizer}: {rule}; name another folder: --tokenizer")


def files_of_tokenizer(folder: Path) -> list[Path]:
    """Those files of a tokenizer that a folder holds."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def token_ids(folder: Path) -> dict[str, int]:
    """What a config says of tokens, from the tokenizer in a folder: the ids that begin, end and pad a text.

    Raises:
        CheckpointError: A file of it is damaged.
    """
    settings, tokens = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    try:
        known = {token["content"]: int(token["id"]) for token in tokens.get("added_tokens", ())}
    except (KeyError, TypeError, ValueError) as error:
        rule = f"its added_tokens are no tokens: {type(error).__name__}: {error}"
        raise CheckpointError(f"file={folder / 'tokenizer.json'}: is damaged: {rule}") from error
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if content in known:
            ids[f"{name}_id"] = known[content]
    return ids


def _planned(opened: Opened, holders: Iterable[Holder], dtype: Dtype | None) -> dict[str, list[tuple[Entry, Fill]]]:
    """How every buffer is filled, by holder; without a dtype each keeps that of its source."""
    planned: dict[str, list[tuple[Entry, Fill]]] = {}
    for fill in reshard(opened.holders, holders).fills:
        first = fill.copies[0]
        kept = opened.tensors[first.holder, first.buffer].dtype
        entry = Entry(fill.buffer.name, DTYPES[dtype] if dtype else kept, fill.buffer.shape)
        planned.setdefault(fill.holder, []).append((entry, fill))
    return planned


def _with_state(opened: Opened, holder: Holder) -> Holder:
    """A file with what the optimizer keeps of each of its parameters, as far as the source has it."""
    kept = [
        state
        for buffer in holder.buffers
        for part in (MASTER, *MOMENTS)
        if (state := state_buffer(part, buffer)).pieces[0].key in opened.sources
    ]
    return holder._replace(buffers=(*holder.buffers, *kept))


def _out(name: str, planned: Sequence[tuple[Entry, Fill]], write: Any) -> OutFile:
    return OutFile(name, tuple(entry for entry, _ in planned), tuple(fill for _, fill in planned), write)


def _write_hf(stream: BinaryIO, entries: Sequence[Entry], chunks: Iterator[Iterator[memoryview]]) -> list[Stored]:
    return stream_safetensors(stream, entries, chunks)


def _write_dist(stream: BinaryIO, entries: Sequence[Entry], chunks: Iterator[Iterator[memoryview]]) -> list[Stored]:
    written = []
    for entry, parts in zip(entries, chunks, strict=True):
        start = stream.tell()
        place = write_chunks(stream, dtype=entry.dtype, shape=entry.shape, chunks=parts)
        written.append(Stored(entry.name, entry.bytes, *place, span=(start, stream.tell() - start)))
    return written


def _dist_boxes(opened: Opened) -> Iterator[tuple[str, tuple[int, ...], Box]]:
    """The boxes in which each stored tensor is written: an expert's tensor, and pieces of whole rows of all others."""
    for fqn, param in params_of(opened.model).items():
        place = stored(fqn, param)
        state = (optimizer_key(part, place.key) for part in (MASTER, *MOMENTS))
        rows, row = param.shape[0], 4 * whole(param.shape[1:]).elements
        for key in (place.key, *(key for key in state if opened.training and key in opened.sources)):
            for box in cut(whole(param.shape), max(1, min(rows, PIECE_BYTES // row)) * row // 4):
                yield key, place.shape, box if place.expert is None else _in_stack(box, place.expert)


def _in_stack(box: Box, expert: int) -> Box:
    return Box((expert, *box.offset), (1, *box.shape))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
