"""One rank of any world, built and run for a step in fake tensors on the virtual NPU, and what it did."""

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.device import open_device
from ridgeline.kernels.npu.virtual.fake import fake_npu
from ridgeline.kernels.npu.virtual.known import known_values
from ridgeline.models.program import RankProgram
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.step import train_step
from ridgeline.models.runtime.tracing.live import LiveBytes
from ridgeline.models.runtime.tracing.recorder import Recorder
from ridgeline.models.runtime.tracing.where import Where
from ridgeline.parallel.runtime.optimizer import update
from ridgeline.parallel.traced import Trace


@attrs.frozen(kw_only=True, eq=False)
class Samples:
    """A microbatch of whole samples, on the host as a loader gives it."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None = None


def trace_or_fault(program: RankProgram) -> Trace | str:
    """As `trace_rank`, with the message of an error as a value, which crosses processes whole."""
    try:
        return trace_rank(program)
    except LoweringError as error:
        return str(error)


def trace_rank(program: RankProgram) -> Trace:
    """Trace one step of a rank, a later one: the optimizer has its moments.

    To be called in a process of the virtual NPU (`ridgeline.kernels.npu.virtual.processes`), which is part of no group.

    Args:
        program: Of that rank, for device npu.

    Raises:
        LoweringError: The program reads a number that no trace has, or splits its backwards.
    """
    if any(action.kind not in "FB" for action in program.actions):
        schedule = program.job.layout.schedule
        raise LoweringError(f"layout.schedule={schedule!r}: a trace follows whole backwards; use '1f1b' or 'gpipe'")
    began = time.process_time()
    live, where = LiveBytes(), Where(program.actions)
    with (
        torch.autograd.set_multithreading_enabled(False),  # `Where` tells modules by numbers of the forward's thread
        fake_npu(rank=program.rank, world_size=program.job.cluster.world_size),
        known_values() as known,
        ExitStack() as stack,
    ):
        with Recorder(Where(()), live):
            built = stack.enter_context(build(program, open_device("npu")))
            _make_moments(built)
        for owner, tensors in _states(built):
            live.own(tensors, owner)
        where.watch(built.chunks)
        with collected(), Recorder(where, live) as recorder:
            train_step(built, [_microbatch(program)] * program.data.num_microbatches, step=1)
            recorder.end_action()
        return Trace(
            rank=program.rank,
            actions=tuple(recorder.actions),
            peak=tuple(sorted(recorder.peak.items(), key=lambda item: -item[1])),
            ops=recorder.ops(),
            collectives=recorder.collectives(),
            samples=tuple(recorder.samples),
            reads=tuple(known.reads.items()),
            seconds=time.process_time() - began,
        )


@contextmanager
def collected() -> Iterator[None]:
    """No garbage at the beginning, and none collected until the end: cycles live as long as they would at worst."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _make_moments(built: Built) -> None:
    """An update before the first step, which makes what the optimizer keeps from its first one on."""
    update(built.optimizer, lr=0.0, weight_decay=0.0, clip_grad=0.0)
    built.optimizer.zero_grad()


def _states(built: Built) -> Iterator[tuple[str, list[Any]]]:
    """What lives longer than a step, by component; where two share a storage, the later one has it."""
    adams: list[Any] = [chained.optimizer for chained in built.optimizer.chained_optimizers]
    yield "moments", [value for adam in adams for state in adam.state.values() for value in state.values()]
    yield "masters", [param for adam in adams for group in adam.param_groups for param in group["params"]]
    params: list[Any] = [param for chunk in built.chunks for param in chunk.parameters()]
    yield "grads", [param.main_grad for param in params if hasattr(param, "main_grad")]
    yield "params", [*params, *(buffer for chunk in built.chunks for buffer in chunk.module.buffers())]


def _microbatch(program: RankProgram) -> Samples:
    """Samples of one document each; which tokens they hold changes no shape."""
    tokens = torch.zeros(program.data.mbs, program.data.seq_len, dtype=torch.int64)
    mask = torch.ones_like(tokens)
    return Samples(tokens=tokens, labels=tokens, loss_mask=mask, position_ids=tokens)
