"""From any format and layout to any other: Hugging Face folders, ``torch_dist`` and classic checkpoints.

A conversion is planned whole before a byte is written. It writes into ``.tmp-NAME``, file by file, and gives the folder
its name when all is on the disk. Killed, it goes on where it stood when it is started again; what stands under the
final name is whole and carries its checksums.
"""

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.io.adapter_runs import pairs_of
from ridgeline.checkpoint.io.adapters import WEIGHTS, merged, read_adapter, write_adapter
from ridgeline.checkpoint.io.destinations import (
    Destination,
    Dtype,
    classic_destination,
    dist_destination,
    files_of_tokenizer,
    hf_destination,
)
from ridgeline.checkpoint.io.execute import CHUNK_BYTES, Progress, write_files
from ridgeline.checkpoint.io.folders import disk_errors, publish_tree
from ridgeline.checkpoint.io.manifest import (
    JOURNAL,
    Manifest,
    WrittenFile,
    begin_journal,
    digest_of,
    read_manifest,
    size_fault,
    sole_writer,
    write_manifest,
)
from ridgeline.checkpoint.io.open_source import open_source
from ridgeline.checkpoint.io.safetensors import Stored
from ridgeline.checkpoint.io.sources import Format, Opened
from ridgeline.checkpoint.steps import WRITING
from ridgeline.core.codec import dumps
from ridgeline.core.errors import CheckpointError, few
from ridgeline.core.frozen import frozen
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec

MAX_THREADS = 8


@frozen(kw_only=True)
class Wanted:
    """What a conversion is to give.

    Attributes:
        format: Of the folder to be.
        layout: Of the ranks that load it; only ``classic`` depends on it.
        form: Names and packing of ``classic``.
        dtype: Of the weights; None leaves each as it is. fp32 is read from the optimizer's copies where there are any.
        tokenizer: Folder whose tokenizer is put beside Hugging Face weights, or its ``tokenizer.json``.
        max_file_bytes: Size of a file of weights, where ranks do not decide it; by default ``usual_file_bytes``.
        adapter: Folder of a LoRA adapter in PEFT's format, merged into a Hugging Face source.
        optimizer: Take the optimizer's state along, and where the run stands.
    """

    format: Format
    layout: Layout = Layout()
    form: ClassicForm = ClassicForm()
    dtype: Dtype | None = None
    tokenizer: str | None = None
    max_file_bytes: int | None = None
    adapter: str | None = None
    optimizer: bool = False


@attrs.frozen(eq=False)
class Conversion:
    """A conversion, planned: what is read, and what will be written."""

    opened: Opened
    destination: Destination
    wanted: Wanted
    digest: str

    @property
    def threads(self) -> int:
        """Files written at a time: while one waits for the disk, another is filled."""
        return max(1, min(MAX_THREADS, 2 * len(os.sched_getaffinity(0)), len(self.destination.files)))

    @property
    def peak_bytes(self) -> int:
        """Memory of the chunks, above what the process holds anyway; a single row may be larger."""
        return self.threads * CHUNK_BYTES


@attrs.frozen(kw_only=True)
class Outcome:
    """What a conversion did.

    Attributes:
        bytes: Written, of all tensors.
        seconds: It took.
        kept: Files that an earlier, interrupted conversion had written.
        was_done: The folder stood already, by the same conversion.
        dropped: Tensors of the source that the model has no use for.
    """

    bytes: int
    seconds: float
    kept: int = 0
    was_done: bool = False
    dropped: tuple[str, ...] = ()


def plan_conversion(source: str | Path, wanted: Wanted, *, model: ModelSpec | None = None) -> Conversion:
    """Plan a conversion: nothing is written.

    Raises:
        CheckpointError: The source or the tokenizer cannot be read or lacks a part, or the format has no such option.
        PlanError: The layout does not fit the model.
        SpecError: The model's family has no Hugging Face class.
    """
    check_wanted(wanted)
    if wanted.optimizer:
        _check_optimizer(wanted)
    opened = open_source(source, model=model, masters=wanted.dtype == "fp32", optimizer=wanted.optimizer)
    if wanted.adapter is not None:
        opened = merged(opened, read_adapter(wanted.adapter))
    match wanted.format:
        case "hf":
            tokenizer = wanted.tokenizer or _own_tokenizer(opened)
            destination = hf_destination(
                opened, dtype=wanted.dtype, max_file_bytes=wanted.max_file_bytes, tokenizer=tokenizer
            )
        case "torch_dist":
            destination = dist_destination(opened, dtype=wanted.dtype, max_file_bytes=wanted.max_file_bytes)
        case "classic":
            destination = classic_destination(opened, layout=wanted.layout, form=wanted.form, dtype=wanted.dtype)
    adapter = () if wanted.adapter is None else (Path(wanted.adapter) / WEIGHTS,)
    digest = digest_of((attrs.asdict(wanted, recurse=False), dumps(opened.model)), (*opened.files, *adapter))
    return Conversion(opened, destination, wanted, digest)


def check_wanted(wanted: Wanted) -> None:
    """Raise where something is asked for that the format does not have."""
    if wanted.format != "classic" and (wanted.layout, wanted.form) != (Layout(), ClassicForm()):
        asked = "layout" if wanted.layout != Layout() else f"form={wanted.form}"
        rule = f"has no effect on format={wanted.format!r}, whose files any layout loads"
        raise CheckpointError(f"{asked}: {rule}; leave it out, or use --format classic")
    if wanted.format != "hf" and wanted.tokenizer is not None:
        rule = f"has no effect on format={wanted.format!r}, which keeps none"
        raise CheckpointError(f"tokenizer={wanted.tokenizer}: {rule}; leave it out, or use --format hf")


def convert(conversion: Conversion, out: str | Path, *, progress: Progress | None = None) -> Outcome:
    """Carry out a conversion; ``out`` appears when it is whole.

    Raises:
        CheckpointError: ``out`` exists and is not of this conversion, the disk is full, or the source is damaged.
            Nothing is left of it then; only if it is interrupted, what is whole is kept for the next start.
    """
    begin, final = time.monotonic(), Path(out)
    destination = conversion.destination
    with disk_errors(final), contextlib.ExitStack() as stack:
        if os.path.lexists(final):
            return _done_before(conversion, final)
        temporary = final.with_name(WRITING + final.name)
        temporary.mkdir(parents=True, exist_ok=True)
        stack.enter_context(sole_writer(temporary))
        try:
            kept = begin_journal(temporary, conversion.digest)
            _clear(temporary, kept)
            names = {file.name for file in kept}
            left = [file for file in destination.files if file.name not in names]
            _check_room(temporary, final, sum(file.bytes for file in left))
            written = write_files(
                temporary,
                left,
                conversion.opened.tensors,
                threads=conversion.threads,
                progress=progress,
                done=destination.bytes - sum(file.bytes for file in left),
            )
            by_name = {file.name: file for file in (*kept, *written)}
            files = tuple(by_name[file.name] for file in destination.files)
            opened = conversion.opened
            write_manifest(temporary, Manifest(conversion.digest, str(opened.folder.resolve()), opened.dropped, files))
            destination.finish(temporary, files)
            publish_tree(temporary, final)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        (final / JOURNAL).unlink()
    return Outcome(
        bytes=destination.bytes,
        seconds=time.monotonic() - begin,
        kept=len(kept),
        dropped=conversion.opened.dropped,
    )


def verify(folder: str | Path, *, progress: Progress | None = None) -> int:
    """Read a converted folder again and compare every tensor with its checksum; the bytes compared.

    Raises:
        CheckpointError: There are no checksums, tensors differ from theirs (all are named), or what stands beside them
            is not as it was.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        rule = "holds no checksums; only what was converted does" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"folder={folder}: {rule}")
    total = sum(file.bytes for file in manifest.files)
    faults, done = [], 0
    for file in manifest.files:
        if fault := size_fault(folder, file):
            faults.append(f"  {fault}")
            continue
        faults += [f"  {file.name}: {name}" for name in _differing(folder / file.name, file)]
        done += file.bytes
        if progress:
            progress(done, total)
    if faults:
        raise CheckpointError("\n".join((f"folder={folder}: is damaged; convert again:", *few(faults))))
    open_source(folder)
    return done


def import_hf(
    hf_folder: str | Path, out: str | Path, *, dtype: Dtype | None = None, progress: Progress | None = None
) -> None:
    """Write a Hugging Face folder as a checkpoint of weights, which any layout starts from.

    Raises:
        CheckpointError: As of ``plan_conversion`` and ``convert``.
        SpecError: The config is none that is known.
    """
    convert(plan_conversion(hf_folder, Wanted(format="torch_dist", dtype=dtype)), out, progress=progress)


def export_hf(
    checkpoint: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: Dtype | None = None,
    max_file_bytes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a saved step, or the latest of a run, as a Hugging Face folder that transformers loads.

    Raises:
        CheckpointError: As of ``plan_conversion`` and ``convert``.
        SpecError: The model's family has no Hugging Face class.
    """
    chosen = None if tokenizer is None else str(tokenizer)
    wanted = Wanted(format="hf", dtype=dtype, tokenizer=chosen, max_file_bytes=max_file_bytes)
    convert(plan_conversion(checkpoint, wanted), out, progress=progress)


def export_adapter(checkpoint: str | Path, out: str | Path) -> None:
    """Write the adapters of a saved step, or of the latest of a run, in PEFT's format.

    Raises:
        CheckpointError: The run has none, ``out`` exists, or PEFT has no such adapter.
    """
    opened = open_source(checkpoint)
    job = opened.record.job if opened.record else None
    if job is None or job.adapter is None:
        raise CheckpointError(f"source={checkpoint}: holds no adapters; only a run with job.adapter does")
    pairs = pairs_of(opened, job.adapter)
    write_adapter(out, opened.model, pairs, alpha=job.adapter.alpha, base=job.init.hf or job.init.checkpoint or "")


def _check_optimizer(wanted: Wanted) -> None:
    """Raise where the optimizer's state cannot go along."""
    if wanted.format == "hf":
        raise CheckpointError("optimizer=True: format='hf' holds weights alone; use --format torch_dist or classic")
    if wanted.dtype is not None or wanted.adapter is not None:
        changed = f"dtype={wanted.dtype!r}" if wanted.dtype is not None else f"adapter={wanted.adapter!r}"
        raise CheckpointError(f"{changed}: changes weights under their optimizer's state; leave out one of the two")


def _own_tokenizer(opened: Opened) -> str | Path | None:
    """The tokenizer that weights came with: that of their job, or of their folder."""
    if opened.record and opened.record.job and opened.record.job.data.tokenizer:
        return opened.record.job.data.tokenizer
    return opened.folder if files_of_tokenizer(opened.folder) else None


def _done_before(conversion: Conversion, final: Path) -> Outcome:
    """What there is to say of a folder that stands already.

    Raises:
        CheckpointError: It is not of this conversion.
    """
    manifest = read_manifest(final) if final.is_dir() else None
    if manifest is None or manifest.conversion != conversion.digest:
        raise CheckpointError(f"folder={final}: exists; remove it or name another")
    (final / JOURNAL).unlink(missing_ok=True)  # killed before it could
    return Outcome(bytes=conversion.destination.bytes, seconds=0.0, was_done=True, dropped=manifest.dropped)


def _check_room(temporary: Path, final: Path, needed: int) -> None:
    free = shutil.disk_usage(temporary).free
    if free < needed:
        raise CheckpointError(
            f"folder={final}: no room to write it: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free; "
            "free some or write elsewhere"
        )


def _clear(temporary: Path, kept: Sequence[WrittenFile]) -> None:
    """Remove what an interrupted conversion left unfinished."""
    whole = {temporary / file.name for file in kept} | {temporary / JOURNAL}
    for path in [path for path in temporary.rglob("*") if path.is_file() and path not in whole]:
        path.unlink()


def _differing(path: Path, file: WrittenFile) -> list[str]:
    with path.open("rb") as stream:
        return [tensor.name for tensor in file.tensors if _checksum(stream, tensor) != tensor.crc32]


def _checksum(stream: BinaryIO, tensor: Stored) -> int:
    stream.seek(tensor.start)
    checksum, left = 0, tensor.bytes
    while left > 0 and (data := stream.read(min(left, CHUNK_BYTES))):
        checksum = zlib.crc32(data, checksum)
        left -= len(data)
    return checksum
