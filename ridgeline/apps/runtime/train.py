"""The training loop: from a job to trained weights, on this process and those started with it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from ridgeline.apps.runtime.begin import Start, begin, checkpoints_of
from ridgeline.apps.runtime.curves import tensorboard
from ridgeline.apps.runtime.feed import Feed, open_feed
from ridgeline.apps.runtime.metrics import FILE, StepMetrics, metrics_file
from ridgeline.apps.runtime.profiling import profiled_run, show_profile
from ridgeline.apps.runtime.progress import progress
from ridgeline.apps.runtime.saving import Saver, open_saver
from ridgeline.apps.runtime.stopping import stop_on_signals
from ridgeline.apps.runtime.world import any_rank, check_world, current_world, joined
from ridgeline.apps.speed import speed_of
from ridgeline.core.job import Job
from ridgeline.core.params import num_params
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.expert_load import ExpertLoad
from ridgeline.models.runtime.step import eval_step, train_step
from ridgeline.parallel.plan import Plan, plan


@attrs.frozen(kw_only=True)
class Trained:
    """How a run ended.

    Attributes:
        step: Updates made in all.
        loss: Of the last step made now; None where none was.
        stopped: A signal, or ``until``, ended it before its last step.
        output: Where its checkpoints and curves are.
    """

    step: int
    loss: float | None
    stopped: bool
    output: Path


def train(job: Job, *, until: int | None = None, console: Console | None = None) -> Trained:
    """Train a job from where it stands to its end, or until a signal; then save.

    Args:
        job: What to train. If its output holds a checkpoint, the run goes on from there.
        until: Stop after so many steps, as if a signal had come; the job, and so its curve, stays the same.
        console: Where rank 0 shows progress.

    Raises:
        RidgelineError: The job, its data or its checkpoint is wrong; raised before the first step.
    """
    planned = plan(job)
    world = current_world(os.environ)
    check_world(world, planned.job)
    shown = (console or Console()) if world.rank == 0 else Console(quiet=True)
    device = open_device(planned.job.cluster.chip.device)
    device.set_device(world.local_rank)
    job = planned.job
    with (
        stop_on_signals() as stop_asked,
        device.deterministic(job.run.seed) if job.run.deterministic else nullcontext(),
        joined(world, device.capabilities) as ranks,
        build(lower(planned, world.rank), device, local_rank=world.local_rank) as built,
        ExitStack() as stack,
    ):
        start = begin(built)
        for line in (*_introduction(planned), *start.notes):
            shown.print(line, highlight=False, soft_wrap=True)
        # On a card reading overlaps with computing; on a CPU it would compete with it.
        workers = 2 if device.capabilities.streams else 0
        feed = open_feed(built.program, group=ranks.host_group, console=shown, workers=workers)
        saver = stack.enter_context(open_saver(built, saved_step=start.step))
        logs = list(_logs(planned, start, shown, stack)) if world.rank == 0 else []
        trained = run_steps(
            built,
            feed,
            saver,
            start=start,
            until=until,
            stop_asked=lambda: any_rank(stop_asked(), ranks),
            peak_memory=device.peak_memory_bytes,
            show=lambda metrics: [log(metrics) for log in logs],
            end_step=stack.enter_context(profiled_run(built, device, done=start.step)),
        )
    if job.profile is not None and start.step < job.profile.end and trained.step > job.profile.start:
        show_profile(job, shown)
    shown.print(_ending(trained, planned.job), highlight=False, soft_wrap=True)
    return trained


def run_steps(
    built: Built,
    feed: Feed,
    saver: Saver,
    *,
    start: Start,
    until: int | None,
    stop_asked: Callable[[], bool],
    peak_memory: Callable[[], int],
    show: Callable[[StepMetrics], object],
    end_step: Callable[[], object],
) -> Trained:
    """Train step by step, validate and save when it is time; every rank runs it.

    Args:
        built: This rank.
        feed: Its data.
        saver: Told of every step.
        start: Where the run stands.
        until: The last step to make now; None makes all.
        stop_asked: Whether any rank was asked to stop.
        peak_memory: Most bytes held so far.
        show: What each step's figures are given to.
        end_step: Called after each step, before its figures are shown.
    """
    job = built.program.job
    end = min(job.run.steps, until or job.run.steps)
    batches = feed.train(start.consumed_samples)
    step, consumed, loss = start.step, start.consumed_samples, None
    while step < end and not stop_asked():
        began = time.perf_counter()
        done = train_step(built, islice(batches, built.program.data.num_microbatches), step=step)
        seconds = time.perf_counter() - began
        end_step()
        step, consumed, loss = step + 1, consumed + job.batch.gbs, done.loss
        validate = feed.valid is not None and job.run.valid_every is not None and step % job.run.valid_every == 0
        speed = speed_of(job, seconds)
        show(
            StepMetrics(
                step=step,
                loss=done.loss,
                grad_norm=done.grad_norm,
                lr=done.lr,
                tokens=done.tokens,
                skipped=done.skipped,
                mtp_losses=done.mtp_losses,
                indexer_loss=done.indexer_loss,
                consumed_samples=consumed,
                seconds=seconds,
                tokens_per_s=speed.tokens_per_s,
                tflops_per_s=speed.tflops_per_s,
                mfu=speed.mfu,
                memory_bytes=peak_memory(),
                **_expert_figures(done.load),
                valid_loss=_validation_loss(built, feed) if validate else None,
            )
        )
        saver(step, consumed)
    saver(step, consumed, last=True)
    return Trained(step=step, loss=loss, stopped=step < job.run.steps, output=Path(job.run.output))


def _expert_figures(load: ExpertLoad | None) -> dict[str, Any]:
    if load is None:
        return {}
    return {
        "expert_tokens": (load.least, load.most),
        "expert_imbalance": load.imbalance,
        "expert_dropped": load.dropped,
        "balance_loss": load.balance_loss,
    }


def _validation_loss(built: Built, feed: Feed) -> float:
    """Mean over ``valid_steps`` global batches, the same ones each time."""
    assert feed.valid is not None
    batches = feed.valid()
    steps, count = built.program.job.run.valid_steps, built.program.data.num_microbatches
    return sum(eval_step(built, islice(batches, count)) for _ in range(steps)) / steps


def _introduction(planned: Plan) -> Iterator[str]:
    job, mesh = planned.job, planned.mesh
    degrees = " ".join(f"{name}={getattr(mesh, name)}" for name in ("tp", "cp", "ep", "dp", "pp"))
    vpp = f" vpp={job.layout.vpp}" if job.layout.vpp > 1 else ""
    size = num_params(job.model)
    parameters = f"{size / 1e9:.2f}B" if size >= 1e8 else f"{size / 1e6:.2f}M"
    time, peak = planned.time, planned.peak
    yield f"{job.name}: {parameters} parameters, {degrees}{vpp} on {job.cluster.world_size} x {job.cluster.chip.name}"
    yield (
        f"planned: {time.step_us / 1e6:.3g} s a step, {time.tokens_per_s:,.0f} tokens/s, MFU {time.mfu_full:.1%}, "
        f"{peak.total_bytes / 2**30:.3g} of {peak.capacity_bytes / 2**30:.3g} GiB a device"
    )
    yield from (f"warning: {warning}" for warning in planned.warnings)


def _ending(trained: Trained, job: Job) -> str:
    folder = checkpoints_of(job)
    if not trained.stopped:
        return f"done: {trained.step} steps, saved in {folder}"
    return f"stopped at step {trained.step} of {job.run.steps}, saved in {folder}; start again to go on"


def _logs(planned: Plan, start: Start, console: Console, stack: ExitStack) -> Iterator[Callable[[StepMetrics], object]]:
    """Everything a step's figures are given to, open until the stack closes."""
    run = planned.job.run
    output = Path(run.output)
    yield stack.enter_context(metrics_file(output / FILE, from_step=start.step))
    yield stack.enter_context(tensorboard(output / "tensorboard", from_step=start.step))
    planned_mfu = planned.time.mfu_full
    yield stack.enter_context(
        progress(console, steps=run.steps, from_step=start.step, log_every=run.log_every, planned_mfu=planned_mfu)
    )
