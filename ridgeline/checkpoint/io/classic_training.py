"""The state of a training run in files of the classic layout: plain data and tensors, as Megatron-LM has them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from ridgeline.checkpoint.classic_optimizer import MASTER, MOMENTS, Group, members_of, state_buffer
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.sources import Training
from ridgeline.checkpoint.io.tensor_zip import StoredTensor
from ridgeline.checkpoint.names import OptimizerPart
from ridgeline.checkpoint.pieces import Buffer
from ridgeline.core.errors import CheckpointError
from ridgeline.core.job import Job, WsdLr

WITHOUT = "convert its weights alone"
SETTINGS = ("lr", "betas", "eps", "weight_decay", "max_lr", "min_lr")
"""What a group of parameters says of Adam."""


def training_frame(
    optimizers: Sequence[Sequence[Group]], tensors: Mapping[str, StoredTensor], training: Training
) -> dict[str, Any]:
    """What a file holds beside its weights, ``tensors`` standing for those of ``state_buffer`` by name."""
    written = [_optimizer_frame(groups, tensors, training) for groups in optimizers]
    return {
        "iteration": training.step,
        "optimizer": written[0] if len(written) == 1 else written,
        "opt_param_scheduler": dict(training.scheduler),
    }


def settings_of(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """A job's optimizer as the fields of a group of parameters, and its learning rate's schedule, in Megatron's words.

    Source:
        megatron-core 0.16.1, optimizer_param_scheduler.py, ``OptimizerParamScheduler.state_dict``; steps are samples.
    """
    adam, gbs, steps = job.optimizer, job.batch.gbs, job.run.steps
    schedule = adam.lr_schedule
    decay_steps = getattr(schedule, "decay_steps", None) or steps
    group = {
        "lr": adam.lr,
        "betas": (adam.beta1, adam.beta2),
        "eps": adam.eps,
        "weight_decay": adam.weight_decay,
        "max_lr": adam.lr,
        "min_lr": adam.min_lr,
    }
    scheduler = {
        "max_lr": adam.lr,
        "lr_warmup_steps": adam.warmup_steps * gbs,
        "lr_decay_style": "WSD" if isinstance(schedule, WsdLr) else schedule.kind,
        "lr_decay_steps": decay_steps * gbs,
        "min_lr": adam.min_lr,
        "start_wd": adam.weight_decay,
        "end_wd": adam.weight_decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": steps * gbs,
    }
    return group, scheduler


def read_optimizer(
    path: Path, content: Mapping[str, Any], buffers: Iterable[Buffer], *, ep: int
) -> list[tuple[Buffer, FileTensor]]:
    """What the optimizer in a file keeps of each parameter, these being numbered in the order of the file's ``model``.

    Args:
        path: Of the file, for messages.
        content: What it holds.
        buffers: Of its weights.
        ep: Experts have an optimizer of their own where it is more than 1.

    Raises:
        CheckpointError: It holds no such state, or not of each parameter, or in another shape.
    """
    by_name = {buffer.name: buffer for buffer in buffers}
    chunks = sorted((key for key in content if re.fullmatch(r"model\d*", str(key))), key=lambda key: (len(key), key))
    names = [f"{chunk}/{key}" for chunk in chunks for key in content[chunk]]
    trained = [by_name[name] for name in names if name in by_name and not name.endswith(".expert_bias")]
    kept = [found for part in _optimizers(path, content) for found in _kept(path, content, part, trained, ep=ep)]
    there = {buffer.name for buffer, _ in kept}
    for buffer in trained:
        if (name := state_buffer(MOMENTS[0], buffer).name) not in there:
            raise CheckpointError(f"file={path}: its optimizer keeps no {name}; {WITHOUT}")
    return kept


def read_training(path: Path, content: Mapping[str, Any]) -> Training:
    """Where the run of a file stands.

    Raises:
        CheckpointError: It does not say.
    """
    groups = [group for part in _optimizers(path, content) for group in part["param_groups"]]
    states = [state for part in _optimizers(path, content) for state in part["state"].values()]
    updates = {_number(found["step"]) for found in (*states, *groups) if "step" in found}
    step, arguments = content.get("iteration"), content.get("args")
    if len(updates) != 1 or not isinstance(step, int):
        raise CheckpointError(f"file={path}: does not say how many updates were made, but {sorted(updates)}; {WITHOUT}")
    given = {name: value for name, value in groups[0].items() if name in SETTINGS}
    return Training(
        step=step,
        updates=updates.pop(),
        consumed_samples=int(getattr(arguments, "consumed_train_samples", None) or 0),
        settings=given,
        scheduler=content.get("opt_param_scheduler") or {},
    )


def _optimizer_frame(
    groups: Sequence[Group], tensors: Mapping[str, StoredTensor], training: Training
) -> dict[str, Any]:
    numbers = count()
    state, param_groups, masters = {}, [], []
    for group in groups:
        params = list(islice(numbers, len(group.buffers)))
        for number, buffer in zip(params, group.buffers, strict=True):
            moments = {part: tensors[state_buffer(part, buffer).name] for part in MOMENTS}
            state[number] = {"step": float(training.updates), **moments}
        names = [state_buffer(MASTER, buffer).name for buffer in group.buffers]
        masters.append([tensors[name] for name in names if name in tensors])
        decay = 1.0 if group.decays else 0.0
        settings = {**training.settings, "weight_decay": training.settings["weight_decay"] * decay}
        marks = {"wd_mult": decay, "lr_mult": 1.0, "is_expert_parallel": group.experts, "is_decoupled_lr": False}
        param_groups.append({**settings, **marks, "default_config": True, "params": params})
    adam = {"state": state, "param_groups": param_groups}
    return {"optimizer": adam, "fp32_from_fp16_params": masters} if training.mixed else adam


def _optimizers(path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each optimizer's state and groups, with its masters.

    Raises:
        CheckpointError: It has none, or keeps its tensors elsewhere.
    """
    found = content.get("optimizer")
    if not found:
        raise CheckpointError(f"file={path}: holds no optimizer's state; {WITHOUT}")
    if isinstance(found, dict) and 0 in found:
        found = [found[number] for number in sorted(found)]
    parts = []
    for part in found if isinstance(found, list) else [found]:
        adam = part.get("optimizer", part)
        if "state" not in adam:
            rule = "keeps a distributed optimizer's state in distrib_optim.pt, which is not read"
            raise CheckpointError(
                f"file={path}: {rule}; save once without --use-distributed-optimizer, or as torch_dist, or {WITHOUT}"
            )
        parts.append({**adam, "masters": part.get("fp32_from_fp16_params") or []})
    return parts


def _kept(
    path: Path, content: Mapping[str, Any], optimizer: Mapping[str, Any], trained: Sequence[Buffer], *, ep: int
) -> Iterator[tuple[Buffer, FileTensor]]:
    masters = optimizer["masters"] or [()] * len(optimizer["param_groups"])
    for group, copies in zip(optimizer["param_groups"], masters, strict=True):
        decays = group.get("wd_mult", group.get("pre_wd_mult", 1.0)) != 0.0
        members = list(members_of(trained, experts=bool(group.get("is_expert_parallel")), decays=decays, ep=ep))
        if len(members) != len(group["params"]):
            rule = f"has {len(group['params'])} parameters where the model has {len(members)}"
            raise CheckpointError(f"file={path}: a group of its optimizer {rule}; {WITHOUT}")
        halves = [buffer for buffer in members if _weight(content, buffer).dtype != torch.float32]
        if len(copies) != len(halves):
            rule = f"keeps {len(copies)} fp32 copies of {len(halves)} weights"
            raise CheckpointError(f"file={path}: a group of its optimizer {rule}; {WITHOUT}")
        states = [optimizer["state"][number] for number in group["params"]]
        for part in MOMENTS:
            yield from _states_of(path, part, members, [state[part] for state in states])
        yield from _states_of(path, MASTER, halves, copies)


def _states_of(
    path: Path, part: OptimizerPart, buffers: Sequence[Buffer], tensors: Sequence[FileTensor]
) -> Iterator[tuple[Buffer, FileTensor]]:
    for buffer, tensor in zip(buffers, tensors, strict=True):
        if tensor.shape != buffer.shape:
            rule = f"has shape {tensor.shape}, expected {buffer.shape}"
            raise CheckpointError(f"file={path}: {part} of {buffer.name} {rule}; {WITHOUT}")
        yield state_buffer(part, buffer), tensor


def _weight(content: Mapping[str, Any], buffer: Buffer) -> FileTensor:
    chunk, _, key = buffer.name.partition("/")
    return content[chunk][key]


def _number(step: Any) -> int:
    """A count that may be a tensor of no dims."""
    return int(step.strided(0, (), ()).item() if isinstance(step, FileTensor) else step)
