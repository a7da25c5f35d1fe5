"""Rules of what trains, and at what rate."""

from collections.abc import Iterator

from ridgeline.core.errors import Problem
from ridgeline.core.job import ConstantLr, Job, WsdLr
from ridgeline.core.params import block_params, is_target


def adapters(job: Job) -> Iterator[Problem]:
    adapter, model = job.adapter, job.model
    if adapter and not any(
        is_target(param, adapter) for run in model.blocks for param in block_params(run.block, model)
    ):
        yield Problem("adapter.targets", adapter.targets, "names no linear layer of this model", "name one it has")
    if job.adapter and job.comm.moe_dispatcher == "allgather" and job.model.moes:
        rule = "of experts need tokens sent to them one by one"
        yield Problem("adapter", "lora", rule, "set comm.moe_dispatcher to 'alltoall'")


def learning_rate(job: Job) -> Iterator[Problem]:
    schedule, warmup = job.optimizer.lr_schedule, job.optimizer.warmup_steps
    end = None if isinstance(schedule, ConstantLr) else schedule.decay_steps
    path, end = ("run.steps", job.run.steps) if end is None else ("optimizer.lr_schedule.decay_steps", end)
    if warmup >= end:
        rule = f"must be < {path}={end}"
        yield Problem("optimizer.warmup_steps", warmup, rule, f"use at most {end - 1}")
    elif isinstance(schedule, WsdLr) and warmup + schedule.anneal_steps > end:
        rule = f"must leave room for warmup_steps={warmup} before {path}={end}"
        yield Problem("optimizer.lr_schedule.anneal_steps", schedule.anneal_steps, rule, f"use at most {end - warmup}")
