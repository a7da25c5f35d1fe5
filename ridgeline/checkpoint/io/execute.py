"""A reshard plan carried out: files written in parallel, in bounded memory, each whole or not at all.

Sources are mapped: long runs of bytes go to the file as they lie, others are gathered in a chunk of the file to be.
Each is checksummed and written while it is still in the cache. Memory is a chunk for each thread, whatever the model.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, TypeAlias

import attrs
import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.io.manifest import WrittenFile, add_to_journal
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.safetensors import Entry, Stored
from ridgeline.checkpoint.io.tensor_zip import tensor_bytes
from ridgeline.checkpoint.pieces import row_major
from ridgeline.checkpoint.reshard import Fill, SliceCopy
from ridgeline.core.errors import CheckpointError

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

Tensors: TypeAlias = Mapping[tuple[str, str], FileTensor]

CHUNK_BYTES = 1 << 19
"""What stays in a core's own cache between checksum and write; sixteen times as much took the system twice as long."""
MIN_RUN_BYTES = 1 << 16
PART = ".part"


@attrs.frozen(eq=False)
class OutFile:
    """A file to be.

    Attributes:
        name: Its path within the folder.
        entries: Its tensors, in order.
        fills: How each is filled.
        write: Writes the file, given a stream and the chunks of each tensor.
    """

    name: str
    entries: tuple[Entry, ...]
    fills: tuple[Fill, ...]
    write: Callable[[BinaryIO, Sequence[Entry], Iterator[Iterator[memoryview]]], list[Stored]] = attrs.field(repr=False)

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(entry.bytes for entry in self.entries)


def write_files(
    folder: Path,
    files: Sequence[OutFile],
    tensors: Tensors,
    *,
    threads: int,
    progress: Progress | None = None,
    done: int = 0,
) -> list[WrittenFile]:
    """Write files into a folder and note each in its journal once it is on the disk.

    Args:
        folder: Where.
        files: What.
        tensors: What the copies read from.
        threads: Files written at a time.
        progress: Told of every chunk.
        done: Bytes written before.

    Raises:
        CheckpointError: A source is damaged.
        OSError: The disk is full.
    """
    total = done + sum(file.bytes for file in files)
    lock, stop = threading.Lock(), threading.Event()
    count = done

    def told(size: int) -> None:
        nonlocal count
        with lock:
            count += size
            if progress:
                progress(count, total)
        if stop.is_set():
            raise CheckpointError("stopped: another file failed")

    def one(file: OutFile) -> WrittenFile:
        written = _write_file(folder, file, tensors, told)
        with lock:
            add_to_journal(folder, written)
        return written

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="convert") as pool:
        largest_first = sorted(files, key=lambda file: -file.bytes)
        running = [pool.submit(one, file) for file in largest_first]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
            failed = [future for future in running if future.done() and not future.cancelled() and future.exception()]
            if failed:
                failed[0].result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in running]


def chunks_of(
    fill: Fill,
    entry: Entry,
    tensors: Tensors,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    min_run_bytes: int = MIN_RUN_BYTES,
) -> Iterator[memoryview]:
    """The bytes of a tensor, in order; each chunk is valid until the next is asked for.

    Where long runs of the source stand one after the other in the destination, the chunks are the mapped source itself.
    """
    copies = sorted(fill.copies, key=lambda copy: copy.start)
    if all(_is_run(copy, tensors, entry.dtype, min_run_bytes) for copy in copies):
        return _runs(copies, tensors, chunk_bytes // entry.dtype.itemsize)
    return _gathered(copies, entry, tensors, chunk_bytes)


def _is_run(copy: SliceCopy, tensors: Tensors, dtype: torch.dtype, min_bytes: int) -> bool:
    """Whether a copy is a run of bytes, long enough that one copy less is worth a call of its own."""
    return (
        math.prod(copy.shape) * dtype.itemsize >= min_bytes
        and tensors[copy.holder, copy.buffer].dtype == dtype
        and _is_contiguous(copy.shape, copy.strides)
        and _is_contiguous(copy.shape, copy.source_strides)
    )


def _is_contiguous(shape: Shape, strides: Shape) -> bool:
    return all(n == 1 or had == needed for n, had, needed in zip(shape, strides, row_major(shape), strict=True))


def _runs(copies: Sequence[SliceCopy], tensors: Tensors, elements: int) -> Iterator[memoryview]:
    written = 0
    for copy in copies:
        assert copy.start == written, copy
        source, count = tensors[copy.holder, copy.buffer], math.prod(copy.shape)
        for begin in range(0, count, elements):
            size = min(elements, count - begin)
            yield tensor_bytes(source.strided(copy.source_start + begin, (size,), (1,)))
        written += count


def _gathered(copies: Sequence[SliceCopy], entry: Entry, tensors: Tensors, chunk_bytes: int) -> Iterator[memoryview]:
    copies = [part for copy in copies for part in _blocks(copy, chunk_bytes // entry.dtype.itemsize)]
    unit = max((step for copy in copies if (step := _slowest(copy)[1])), default=1)
    size = max(1, chunk_bytes // entry.dtype.itemsize // unit) * unit
    elements = math.prod(entry.shape)
    room = torch.empty(min(size, elements), dtype=entry.dtype)
    left = deque(sorted(copies, key=lambda copy: copy.start))
    for begin in range(0, elements, size):
        while left and _end(left[0]) <= begin:
            left.popleft()
        chunk = room[: min(size, elements - begin)]
        filled = 0
        for copy in left:
            if copy.start >= begin + chunk.numel():
                break
            if (part := _within(copy, begin, begin + chunk.numel())) is not None:
                source = tensors[part.holder, part.buffer]
                target = chunk.as_strided(part.shape, part.strides, part.start - begin)
                target.copy_(source.strided(part.source_start, part.shape, part.source_strides))
                filled += math.prod(part.shape)
        assert filled == chunk.numel(), (entry.name, begin, filled)
        yield tensor_bytes(chunk)


def _end(copy: SliceCopy) -> int:
    """Where the last element that a copy writes ends."""
    return copy.start + 1 + sum((n - 1) * stride for n, stride in zip(copy.shape, copy.strides, strict=True))


def _write_file(folder: Path, file: OutFile, tensors: Tensors, told: Callable[[int], None]) -> WrittenFile:
    final = folder / file.name
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + PART)
    with partial.open("wb", buffering=MIN_RUN_BYTES) as stream:
        chunks = (_counted(chunks_of(f, e, tensors), told) for f, e in zip(file.fills, file.entries, strict=True))
        stored = file.write(stream, file.entries, chunks)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    partial.rename(final)
    return WrittenFile(file.name, size, tuple(stored))


def _counted(chunks: Iterator[memoryview], told: Callable[[int], None]) -> Iterator[memoryview]:
    for chunk in chunks:
        size = len(chunk)
        yield chunk
        told(size)


def _slowest(copy: SliceCopy) -> tuple[int, int]:
    """The dim that takes the largest steps in the destination, and those; (-1, 0) if there is one element only."""
    steps = [(stride, dim) for dim, (n, stride) in enumerate(zip(copy.shape, copy.strides, strict=True)) if n > 1]
    stride, dim = max(steps, default=(0, -1))
    return dim, stride


def _blocks(copy: SliceCopy, elements: int) -> Iterator[SliceCopy]:
    """A copy, cut along its slowest dim as long as one step of it is more than a chunk holds."""
    dim, stride = _slowest(copy)
    if stride <= elements or copy.shape[dim] == 1:
        yield copy
        return
    for index in range(copy.shape[dim]):
        yield from _blocks(_part(copy, dim, index, 1), elements)


def _within(copy: SliceCopy, begin: int, end: int) -> SliceCopy | None:
    """What a copy writes between two elements of its buffer, where no step of its slowest dim is cut."""
    dim, stride = _slowest(copy)
    if dim < 0:
        return copy if begin <= copy.start < end else None
    reach = 1 + sum((n - 1) * s for d, (n, s) in enumerate(zip(copy.shape, copy.strides, strict=True)) if d != dim)
    first = max(0, -((copy.start - begin) // stride))
    last = min(copy.shape[dim], (end - reach - copy.start) // stride + 1)
    return _part(copy, dim, first, last - first) if first < last else None


def _part(copy: SliceCopy, dim: int, index: int, count: int) -> SliceCopy:
    shape: Shape = (*copy.shape[:dim], count, *copy.shape[dim + 1 :])
    return copy._replace(
        source_start=copy.source_start + index * copy.source_strides[dim],
        start=copy.start + index * copy.strides[dim],
        shape=shape,
    )
