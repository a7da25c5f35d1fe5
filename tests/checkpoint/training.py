"""Small training runs for ranks: built, trained, saved and loaded from plain arguments."""

import argparse
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import distributed

from ridgeline.checkpoint.classic import folder_name
from ridgeline.checkpoint.holdings import fragments_of, holdings_of
from ridgeline.checkpoint.io.dist import finish, load, save
from ridgeline.checkpoint.io.initial import load_initial
from ridgeline.checkpoint.io.optimizer import slots_of
from ridgeline.checkpoint.io.state import held
from ridgeline.checkpoint.module_order import in_module_order
from ridgeline.checkpoint.names import stored_box
from ridgeline.core.codec import loads
from ridgeline.core.errors import RidgelineError
from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.step import eval_step, train_step
from ridgeline.parallel.plan import plan
from ridgeline.parallel.shards import rank_params


@attrs.frozen(kw_only=True)
class Tokens:
    """A microbatch as the model takes it."""

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: None = None


def batch_of(samples: range, *, seq_len: int, vocab: int) -> Tokens:
    """Samples of an endless corpus: the same numbers for the same index, whoever asks."""
    rows = [torch.randint(0, vocab, (seq_len + 1,), generator=torch.Generator().manual_seed(i)) for i in samples]
    text = torch.stack(rows)
    positions = torch.arange(seq_len).expand(len(rows), -1)
    ones = torch.ones(len(rows), seq_len)
    return Tokens(tokens=text[:, :-1], labels=text[:, 1:], loss_mask=ones, position_ids=positions)


@contextmanager
def built_of(job_text: str) -> Iterator[Built]:
    """This rank of a job."""
    job = loads(job_text, Job)
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        yield built


def microbatches(built: Built, consumed: int) -> list[Tokens]:
    """What this rank reads in the step after so many samples."""
    data = built.program.data
    vocab = built.program.job.model.vocab_size
    return [batch_of(samples, seq_len=data.seq_len, vocab=vocab) for samples in data.samples(consumed)]


def steps_of(built: Built, first: int, last: int) -> list[tuple[float, float]]:
    """Train from step ``first`` to ``last``: loss and gradient norm of each step."""
    gbs = built.program.job.batch.gbs
    results = [train_step(built, microbatches(built, step * gbs), step=step) for step in range(first, last)]
    return [(result.loss, result.grad_norm) for result in results]


def draws() -> list[float]:
    """A number from every random stream that a checkpoint carries."""
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def uninterrupted(job_text: str, folder: str, stop: int, last: int, **options: Any) -> Any:
    """Train to ``last``, saving after ``stop`` steps: losses from there on, and draws from the random streams there."""
    with built_of(job_text) as built:
        random.seed(distributed.get_rank())
        steps_of(built, 0, stop)
        saving = save(folder, built, step=stop, consumed_samples=stop * built.program.job.batch.gbs, **options)
        drawn = draws()
        losses = steps_of(built, stop, last)
        if saving is not None:
            finish(saving)
        return losses, drawn


def resumed(job_text: str, folder: str, last: int) -> Any:
    """Load a step and train on to ``last``: losses from there on, and draws from the random streams there."""
    with built_of(job_text) as built:
        record = load(folder, built)
        assert record.consumed_samples == record.step * built.program.job.batch.gbs
        drawn = draws()
        return steps_of(built, record.step, last), drawn


def save_until_killed(job_text: str, folder: str, first: int, victim: int, delay: float) -> None:
    """Save step after step, all weights equal to the step's number, until the victim dies in the middle of it."""
    with built_of(job_text) as built:
        fill(built, first)
        save(folder, built, step=first, consumed_samples=0)
        if distributed.get_rank() == victim:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        saving = None
        for step in range(first + 1, first + 1000):
            fill(built, step)
            saving = save(
                folder, built, step=step, consumed_samples=0, keep_last=2, async_=bool(step % 2), after=saving
            )


def loaded_values(job_text: str, folder: str) -> tuple[int, list[float]]:
    """The step of a checkpoint, and the different values of its weights and moments."""
    with built_of(job_text) as built:
        record = load(folder, built)
        weights = {v for chunk in built.chunks for p in chunk.parameters() for v in p.detach().unique().tolist()}
        moments = {v for slot in slots_of(built.optimizer) for v in slot.moments["exp_avg"].unique().tolist()}
        return record.step, sorted(weights | moments)


@torch.no_grad()
def fill(built: Built, value: float) -> None:
    """Make every weight and every moment a number."""
    for chunk in built.chunks:
        for parameter in chunk.parameters():
            parameter.fill_(value)
    for slot in slots_of(built.optimizer):
        slot.moments["exp_avg"].fill_(value)


def save_without_room(job_text: str, folder: str, async_: bool) -> list[str]:
    """Save once, then again when rank 1 can write no file of over 10 kB: what each rank is told."""
    told = []
    with built_of(job_text) as built:
        save(folder, built, step=1, consumed_samples=0)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if distributed.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            saving = save(folder, built, step=2, consumed_samples=0, async_=async_)
            if saving is not None:
                while not finish(saving, wait=False):
                    time.sleep(0.01)
        except RidgelineError as error:
            told.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        save(folder, built, step=3, consumed_samples=0)
    return told


def load_error(job_text: str, folder: str) -> str:
    """What a rank is told when it loads something that it cannot."""
    with built_of(job_text) as built:
        try:
            load(folder, built)
        except RidgelineError as error:
            return str(error)
    return ""


def started_loss(job_text: str) -> tuple[float, list[tuple[float, float]]]:
    """The loss of the first step's samples on the initial weights, and the first steps from there."""
    with built_of(job_text) as built:
        load_initial(built)
        return eval_step(built, microbatches(built, 0)), steps_of(built, 0, 2)


def megatron_boxes(job_text: str) -> dict[str, list[Any]]:
    """Where Megatron-core's own code and ours put this rank's tensors: key, global shape, offset and shape of each."""
    with built_of(job_text) as built:
        shards = [
            (shard.key, shard.global_shape, shard.global_offset, (*(1,) * shard.prepend_axis_num, *shard.local_shape))
            for shard in _megatron_shards(built)
        ]
        ours = []
        for holding in holdings_of(built.program):
            for fragment in fragments_of(holding):
                box = stored_box(holding.place, fragment.box)
                ours.append((holding.place.key, holding.place.shape, box.offset, box.shape))
    return {"ours": ours, "megatron": shards}


def load_in_megatron(job_text: str, folder: str) -> list[float]:
    """Load a checkpoint's weights with Megatron-core's own code, and compare with ours: the largest difference."""
    from megatron.core import dist_checkpointing

    with built_of(job_text) as built:
        load(folder, built)
        ours = [p.detach().clone() for chunk in built.chunks for p in chunk.parameters()]
        fill(built, 0.0)
        state = _megatron_state(built)
        loaded = dist_checkpointing.load(state, folder)
        for index, chunk in enumerate(built.chunks):
            _bare(chunk).load_state_dict(loaded[f"model{index}"], strict=True)
        theirs = [p.detach() for chunk in built.chunks for p in chunk.parameters()]
        return [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]


def _megatron_state(built: Built) -> dict[str, Any]:
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"dp_cp_group": group, "non_homogeneous_layers": True}
    return {f"model{i}": _bare(chunk).sharded_state_dict(metadata=metadata) for i, chunk in enumerate(built.chunks)}


def _megatron_shards(built: Built) -> list[Any]:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    state = _megatron_state(built)
    apply_factories(state)
    return [shard for shard in nested_values(state) if isinstance(shard, ShardedTensor)]


def _bare(chunk: Any) -> Any:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def checkpoint_of(folder: Path, step: int) -> str:
    """The folder of a step."""
    return str(folder / f"step_{step:07d}")


def updated_boxes(job_text: str) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The boxes that Megatron-core's distributed optimizer updates on this rank: offset and shape, by stored tensor."""
    with built_of(job_text) as built:
        holdings = {id(param): holding for holding, param in held(built.program, built.chunks)}
        boxes: dict[str, list[Any]] = {}
        for slot in slots_of(built.optimizer):
            holding = holdings[id(slot.param)]
            for fragment in fragments_of(holding, slot.start, slot.stop):
                box = stored_box(holding.place, fragment.box)
                boxes.setdefault(holding.place.key, []).append((box.offset, box.shape))
        return boxes


def load_classic(job_text: str, folder: str, classic: str) -> list[float]:
    """Load a rank's file of the classic layout as Megatron-LM does, and compare with the checkpoint it was made of."""
    with built_of(job_text) as built:
        load(folder, built)
        ours = [p.detach().clone() for chunk in built.chunks for p in chunk.parameters()]
        fill(built, 0.0)
        coords, experts = built.program.coords, built.program.expert_coords
        layout = built.program.job.layout
        name = folder_name(
            tp_rank=coords.tp_rank,
            pp_rank=coords.pp_rank if layout.pp > 1 else None,
            ep_rank=experts.ep_rank if layout.ep > 1 else None,
        )
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(Path(classic) / "iter_0000001" / name / "model_optim_rng.pt", weights_only=True)
        for index, chunk in enumerate(built.chunks):
            _bare(chunk).load_state_dict(content["model" if len(built.chunks) == 1 else f"model{index}"], strict=True)
        rows = built.program.padded_vocab // layout.tp - built.program.num_pads
        theirs = [p.detach() for chunk in built.chunks for p in chunk.parameters()]
        vocabulary = built.program.padded_vocab // layout.tp
        kept = [slice(rows) if len(a) == vocabulary else slice(None) for a in ours]
        return [float((a[k] - b[k]).abs().max()) for a, b, k in zip(ours, theirs, kept, strict=True)]


def module_orders(job_texts: list[str]) -> list[list[list[str]]]:
    """The names of a chunk's parameters for each job, as its modules register them and as the plan orders them."""
    orders = []
    for job_text in job_texts:
        with built_of(job_text) as built:
            names = [name for name, _ in _bare(built.chunks[0]).named_parameters()]
            trained = [param for param in rank_params(plan(loads(job_text, Job)), 0) if param.param.trains]
            orders.append([names, [param.name for param in in_module_order(trained)]])
    return orders
