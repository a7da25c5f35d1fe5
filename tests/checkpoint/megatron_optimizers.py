"""Megatron-core's optimizers on ranks: their state saved and loaded in the classic layout by their own methods."""

import argparse
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from ridgeline.checkpoint.classic import FILE, POINTER, folder_name
from ridgeline.checkpoint.io.dist import load
from ridgeline.checkpoint.io.optimizer import slots_of
from ridgeline.models.runtime.build import Built
from tests.checkpoint.training import _bare, built_of

State = dict[str, tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]]


def state_of(built: Built) -> State:
    """How often each parameter was updated, what is updated, and its moments."""
    names = {
        id(param): f"{index}.{name}"
        for index, chunk in enumerate(built.chunks)
        for name, param in _bare(chunk).named_parameters()
    }
    return {
        names[id(slot.param)]: (
            float(slot.state["step"]),
            slot.main.clone(),
            *(m.clone() for m in slot.moments.values()),
        )
        for slot in slots_of(built.optimizer)
    }  # pyright: ignore[reportReturnType]  two moments


def different(one: State, other: State) -> list[str]:
    """Which parameters differ in any bit of what is kept of them; that they hold more than zeros is checked."""
    assert any(bool(tensor.any()) for _, *kept in one.values() for tensor in kept)
    assert one.keys() == other.keys()
    return [
        name
        for name, (updates, *kept) in one.items()
        if updates != other[name][0] or not all(map(torch.equal, kept, other[name][1:]))
    ]


def file_of(built: Built, step: Path) -> Path:
    coords, experts, layout = built.program.coords, built.program.expert_coords, built.program.job.layout
    name = folder_name(
        tp_rank=coords.tp_rank,
        pp_rank=coords.pp_rank if layout.pp > 1 else None,
        ep_rank=experts.ep_rank if layout.ep > 1 else None,
    )
    return step / name / FILE


def megatron_loads(job_text: str, folder: str, classic: str) -> tuple[list[str], int, float]:
    """In what Megatron-core's load of a classic file differs from what it was made of; samples; the peak rate."""
    with built_of(job_text) as built:
        load(folder, built)
        ours = state_of(built)
        for slot in slots_of(built.optimizer):
            slot.state["step"] = torch.zeros_like(slot.state["step"])
            for tensor in (slot.main, *slot.moments.values()):
                tensor.zero_()
        step = Path(classic) / f"iter_{int((Path(classic) / POINTER).read_text()):07d}"
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file_of(built, step), weights_only=True)
        for index, chunk in enumerate(built.chunks):
            _bare(chunk).load_state_dict(content["model" if len(built.chunks) == 1 else f"model{index}"], strict=True)
        built.optimizer.load_state_dict(content["optimizer"])
        adam = built.program.job.optimizer
        scheduler = OptimizerParamScheduler(
            built.optimizer, 0.0, adam.lr, adam.min_lr, 0, 8, "constant", 0.1, 0.1, 8, "constant",
            use_checkpoint_opt_param_scheduler=True, override_opt_param_scheduler=False,
        )  # fmt: skip
        scheduler.load_state_dict(content["opt_param_scheduler"])
        assert content["args"].consumed_train_samples == scheduler.num_steps
        return different(ours, state_of(built)), scheduler.num_steps, scheduler.max_lr


def megatron_saves(job_text: str, folder: str, classic: str) -> None:
    """Save a checkpoint's state in the classic layout as Megatron-LM does, by the methods of Megatron-core."""
    with built_of(job_text) as built:
        record = load(folder, built)
        path = file_of(built, Path(classic) / f"iter_{record.step:07d}")
        several = len(built.chunks) > 1
        content: dict[str, Any] = {
            "args": argparse.Namespace(consumed_train_samples=record.consumed_samples),
            "iteration": record.step,
            "optimizer": built.optimizer.state_dict(),
        }
        for index, chunk in enumerate(built.chunks):
            content[f"model{index}" if several else "model"] = _bare(chunk).state_dict_for_save_checkpoint()
        experts = built.program.job.layout.ep > 1
        first = parallel_state.get_expert_data_parallel_rank if experts else parallel_state.get_data_parallel_rank
        if first() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
            (Path(classic) / POINTER).write_text(str(record.step))


def differences(job_text: str, one: str, other: str) -> list[str]:
    """In what two checkpoints' states of training differ, and in what they say of where it stands."""
    with built_of(job_text) as built:
        records, states = [], []
        for folder in (one, other):
            record = load(folder, built)
            records.append((record.step, record.optimizer_step, record.consumed_samples))
            states.append(state_of(built))
        return [*different(*states), *(str(records) for _ in [0] if records[0] != records[1])]
