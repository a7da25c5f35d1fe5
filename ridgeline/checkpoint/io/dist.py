"""Saving and loading the state of training, so that it goes on bit for bit and under any layout.

A save writes into ``.tmp-step_N``; when every rank's file is on the disk, rank 0 writes the index, gives the folder
its name and moves the pointer. So whatever dies when, ``latest`` names a whole checkpoint. An error on one rank is
raised on all, and what was written is removed.
"""

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch import distributed

from ridgeline.checkpoint.io.agreement import everywhere, gathered, on_first, together
from ridgeline.checkpoint.io.folders import (
    begin_folder,
    clean,
    flush,
    publish,
    remove_folder,
    replace_file,
    saved_steps,
)
from ridgeline.checkpoint.io.optimizer import set_updates_made, slots_of, updates_made
from ridgeline.checkpoint.io.recorded import check_resumable, open_record, write_record
from ridgeline.checkpoint.io.rng import random_streams, set_random_streams
from ridgeline.checkpoint.io.state import items_to_read, items_to_write
from ridgeline.checkpoint.io.strategy import BoxReader, BoxWriter, tensor_shard
from ridgeline.checkpoint.io.torch_dist.index import NOTHINGS
from ridgeline.checkpoint.io.torch_dist.reader import Reader, open_checkpoint, read_common, stored_tensor
from ridgeline.checkpoint.io.torch_dist.writer import TensorItem, Written, write_index, write_nothings
from ridgeline.checkpoint.names import extra_state_keys, rng_key
from ridgeline.checkpoint.record import Record, model_of
from ridgeline.checkpoint.steps import POINTER, WRITING, expired, step_name
from ridgeline.core.errors import CheckpointError
from ridgeline.models.runtime.build import Built

T = TypeVar("T")


@attrs.frozen(eq=False)
class Saving:
    """A save under way.

    Attributes:
        final: The folder it will be.
        record: What it will say of itself, its files not yet listed.
        keep_last: How many checkpoints stay, this one included; None keeps all.
        request: What Megatron-core wants done at the end.
        written: What this rank wrote, once it has.
    """

    final: Path
    record: Record
    keep_last: int | None
    request: AsyncRequest
    written: Future[list[Written]]


def save(
    folder: str | Path,
    built: Built,
    *,
    step: int,
    consumed_samples: int,
    async_: bool = False,
    keep_last: int | None = None,
    after: Saving | None = None,
) -> Saving | None:
    """Save a training state as ``folder/step_NNNNNNN``; every rank calls it.

    Args:
        folder: Of the run's checkpoints, on a disk that all nodes share.
        built: This rank.
        step: Updates made.
        consumed_samples: Samples that training has read.
        async_: Copy the state, return at once and write it from a thread; ``finish`` then completes the save.
        keep_last: Checkpoints to keep, this one included; None keeps all.
        after: An earlier asynchronous save, finished first.

    Returns:
        The save under way if asynchronous; None when it is done.

    Raises:
        CheckpointError: On every rank if any failed: a full disk, a folder that is not shared. Earlier checkpoints are
        whole.
    """
    if after is not None:
        finish(after)
    final = Path(folder) / step_name(step)
    temporary = final.with_name(WRITING + final.name)
    on_first(lambda: _begin(final), final)
    if built.program.job.comm.overlap_param_gather:
        for chunk in built.chunks:
            chunk.start_param_sync(force_sync=True)
    request, record = _undone_on_error(
        lambda: _request(built, temporary, step, consumed_samples, copy=async_), temporary
    )
    saving = Saving(final, record, keep_last, request, _started(request, async_=async_))
    if async_:
        return saving
    finish(saving)
    return None


def finish(saving: Saving, *, wait: bool = True) -> bool:
    """Complete a save once every rank has written: index, name, pointer, and removal of what is no longer kept.

    Every rank calls it. A training loop calls it with ``wait=False`` after each step until it gives True.

    Returns:
        Whether the save is complete; False only if ``wait`` is False and some rank still writes.

    Raises:
        CheckpointError: As of ``save``.
    """
    if not wait and not everywhere(saving.written.done()):
        return False
    temporary = saving.final.with_name(WRITING + saving.final.name)
    written = _undone_on_error(saving.written.result, temporary)
    parts = gathered(written)
    _undone_on_error(lambda: _write_index(temporary, parts, saving.record), temporary)
    for finalize in saving.request.finalize_fns:
        finalize()
    _undone_on_error(lambda: _complete(saving, temporary), temporary)
    return True


def load(folder: str | Path, built: Built) -> Record:
    """Load a saved step into a built rank, whatever the layout of either; every rank calls it.

    Args:
        folder: Of one saved step.
        built: This rank, of the same model.

    Returns:
        What the checkpoint says of itself; with its ``step`` and ``consumed_samples`` training goes on.

    Raises:
        CheckpointError: It is of another model (the fields are named), damaged, cut short or incomplete.
    """
    folder = Path(folder)
    record = together(lambda: open_record(folder), folder)
    job = built.program.job
    together(lambda: check_resumable(record, job.model, folder, adapter=job.adapter), folder)
    reader = together(lambda: _opened(folder), folder)
    together(lambda: _load_tensors(reader, record, built), folder)
    return record


def _begin(final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    clean(final.parent)
    begin_folder(final)


def _request(
    built: Built, temporary: Path, step: int, consumed_samples: int, *, copy: bool
) -> tuple[AsyncRequest, Record]:
    """What this rank will write, planned through Megatron-core, which writes what all ranks have in common."""
    if not temporary.is_dir():
        raise CheckpointError(
            f"folder={temporary.parent}: rank 0 made a folder there that this rank does not see; use a shared disk"
        )
    record = Record(
        step=step,
        optimizer_step=updates_made(slots_of(built.optimizer)),
        consumed_samples=consumed_samples,
        job=built.program.job,
    )
    rank, world_size = built.program.rank, built.program.job.cluster.world_size
    items = items_to_write(built)
    state = {
        "tensors": [tensor_shard(item) for item in (map(_copied, items) if copy else items)],
        "rng_state": ShardedObject("rng_state", random_streams(built.device), (world_size,), (rank,)),
        "iteration": step,
        "optimizer_step": record.optimizer_step,
    }
    request = dist_checkpointing.save(
        state, str(temporary), BoxWriter(), async_sharded_save=True, validate_access_integrity=False
    )
    assert request is not None
    return request, record


def _copied(item: TensorItem) -> TensorItem:
    """The item as it is now, on the host, whatever training does next."""
    return attrs.evolve(item, data=item.data.to("cpu", copy=True))


def _started(request: AsyncRequest, *, async_: bool) -> Future[list[Written]]:
    """The writing, begun in a thread or, here and now, done."""
    assert request.async_fn is not None
    if async_:
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        written = pool.submit(request.async_fn, *request.async_fn_args)
        pool.shutdown(wait=False)
        return written
    written = Future()
    try:
        written.set_result(request.async_fn(*request.async_fn_args))
    except Exception as error:  # finish raises it, on all ranks
        written.set_exception(error)
    return written


def _write_index(temporary: Path, parts: Iterable[list[Written]], record: Record) -> None:
    """On rank 0: the index over what every rank wrote."""
    if distributed.get_rank() == 0:
        nothings = write_nothings(temporary / NOTHINGS, extra_state_keys(model_of(record)))
        write_index(temporary, (part for rank in (*parts, nothings) for part in rank))


def _complete(saving: Saving, temporary: Path) -> None:
    """On rank 0: the record, the name, the pointer, and removal of what is no longer kept."""
    if distributed.get_rank() != 0:
        return
    write_record(temporary, saving.record)
    publish(temporary, saving.final)
    folder = saving.final.parent
    replace_file(folder / POINTER, f"{saving.final.name}\n".encode())
    steps = saved_steps(folder)
    for step in expired(steps, keep_last=saving.keep_last, newest=saving.record.step):
        remove_folder(steps[step])
    flush(folder)


def _opened(folder: Path) -> Reader:
    read_common(folder)  # Megatron-core will read it again; by then it is known to hold no code
    return open_checkpoint(folder)


def _load_tensors(reader: Reader, record: Record, built: Built) -> None:
    items = list(items_to_read(built, reader.index))
    check_shapes(reader, items)
    rank, world_size = built.program.rank, built.program.job.cluster.world_size
    state: dict[str, Any] = {"tensors": [tensor_shard(item) for item in items]}
    # Under another layout a rank is another one, and its streams start from the seed.
    if (
        record.job
        and record.job.layout == built.program.job.layout
        and rng_key(rank, world_size) in reader.index.objects
    ):
        state["rng_state"] = ShardedObject("rng_state", None, (world_size,), (rank,))
    with torch.no_grad():
        loaded = dist_checkpointing.load(state, str(reader.folder), BoxReader(reader), validate_access_integrity=False)
    assert isinstance(loaded, dict)
    set_updates_made(slots_of(built.optimizer), record.optimizer_step)
    if "rng_state" in loaded:
        set_random_streams(loaded["rng_state"], built.device)


def check_shapes(reader: Reader, items: Iterable[TensorItem]) -> None:
    """Raise one error with every tensor that a checkpoint lacks or holds in another shape."""
    faults = {}
    for item in items:
        if item.key not in reader.index.tensors:
            faults[item.key] = f"  {item.key}: missing, expected {item.shape}"
        elif (found := stored_tensor(reader, item.key).shape) != item.shape:
            faults[item.key] = f"  {item.key}: has shape {found}, expected {item.shape}"
    if faults:
        raise CheckpointError(f"checkpoint={reader.folder}: does not fit this model:\n" + "\n".join(faults.values()))


def _undone_on_error(action: Callable[[], T], temporary: Path) -> T:
    """Do something on every rank; if it fails on any, remove what was written and raise everywhere."""
    try:
        return together(action, temporary.with_name(temporary.name.removeprefix(WRITING)))
    except CheckpointError:
        on_first(lambda: shutil.rmtree(temporary, ignore_errors=True), temporary)
        raise
