"""Adapters on ranks, and what transformers, torch's AdamW and the chain rule make of the same ones.

The outside judge knows no adapter: it is given weights W + alpha/rank B A, and the gradients of A and B follow from
that of W.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import transformers
from torch import distributed

from ridgeline.checkpoint.io.initial import load_initial
from ridgeline.core.job import Job
from ridgeline.core.params.adapters import A, B
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.model import named_tensors
from ridgeline.models.runtime.step import accumulate, train_step
from ridgeline.parallel.plan import plan
from tests.parity.on_ranks import Piece, Tokens, pieces
from tests.parity.ours.model import in_our_layout

Pairs = Mapping[str, np.ndarray]
"""A and B of each target by their full names."""


@attrs.frozen
class Tuned:
    """A few steps on the same two samples: losses, the first step's gradients and norm, adapters at the end."""

    losses: list[float]
    grad_norm: float
    gradients: Any
    adapters: Any


@attrs.frozen
class TunedRank(Tuned):
    """What one rank did, and what it holds.

    Attributes:
        frozen_changed: Names of frozen tensors that are not what they were.
        trained: Names that have a gradient.
        state_bytes: Of weights, gradients, and what the optimizer keeps.
        planned_bytes: The same, as the plan has them.
    """

    frozen_changed: list[str]
    trained: list[str]
    state_bytes: tuple[int, int, int]
    planned_bytes: tuple[int, int, int]


def tune(job: Job, text: Any, pairs: Pairs | None, steps: int = 3) -> TunedRank:
    """Start from the job's first weights, and from these adapters if given."""
    batches = [
        Tokens(
            tokens=tokens[:, :-1],
            labels=tokens[:, 1:],
            loss_mask=torch.ones(tokens.shape[0], tokens.shape[1] - 1),
            position_ids=torch.arange(tokens.shape[1] - 1).expand(tokens.shape[0], -1),
        )
        for tokens in torch.from_numpy(text).split(job.batch.mbs)
    ]
    planned = plan(job)
    with build(lower(planned, distributed.get_rank()), open_device("cpu")) as built:
        load_initial(built)
        tensors = list(named_tensors(built.program, built.chunks))
        for owned, tensor in tensors:
            if pairs and owned.local.param.low_rank:
                whole = torch.from_numpy(pairs[owned.local.fqn])
                parts = [whole[tuple(slice(*side) for side in box)] for box in owned.boxes]
                tensor.data.copy_(torch.cat(parts))
        frozen = {owned.local.fqn: tensor.clone() for owned, tensor in tensors if not owned.local.param.low_rank}
        first = accumulate(built, batches, whole=True)
        gradients = list(pieces(built))
        done = [train_step(built, batches, step=step) for step in range(steps)]
        if job.comm.overlap_param_gather:
            for chunk in built.chunks:
                chunk.start_param_sync(force_sync=True)
        memory = planned.memory[built.program.coords.pp_rank]
        return TunedRank(
            losses=[step.loss for step in done] or [first.loss],
            grad_norm=done[0].grad_norm if done else 0.0,
            gradients=gradients,
            adapters=list(_values(built)),
            frozen_changed=[o.local.fqn for o, t in tensors if not _is_same(frozen.get(o.local.fqn), t)],
            trained=[owned.local.fqn for owned, tensor in tensors if tensor.requires_grad],
            state_bytes=_bytes_of(built),
            planned_bytes=(memory.params_bytes, memory.grads_bytes, memory.optimizer_bytes),
        )


def some_pairs(job: Job, seed: int = 5) -> dict[str, np.ndarray]:
    """Adapters of a job, none of them 0."""
    generator = np.random.default_rng(seed)
    rows = (row for row in plan(attrs.evolve(job, layout=attrs.evolve(job.layout))).shards if row.param.low_rank)
    pairs = {}
    for row in rows:
        for layer in row.layers or (None,):
            prefix = "" if layer is None else f"decoder.layers.{layer}."
            for expert in range(max(1, row.param.experts)):
                name = prefix + row.param.name.replace("{expert}", str(expert))
                pairs[name] = generator.normal(0, 0.2, row.param.shape).astype(np.float32)
    return pairs


def judge(folder: Path, job: Job, text: Any, pairs: Pairs, steps: int = 3) -> Tuned:
    """Train adapters of the model that transformers saved to a folder."""
    adapter, adam = job.adapter, job.optimizer
    assert adapter is not None
    scale = adapter.alpha / adapter.rank
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    parameters = dict(model.named_parameters())
    base = {name: tensor.clone() for name, tensor in in_our_layout(_data(parameters), model.config).items()}
    places = _places(parameters, model.config)
    ours = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in pairs.items()}
    optimizer = torch.optim.AdamW(
        ours.values(), lr=adam.lr, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
    )
    targets = [name.removesuffix(A) for name in ours if name.endswith(A)]
    tokens = torch.from_numpy(text)
    losses, norms, first = [], [], {}
    for _ in range(steps):
        for name in targets:
            weight = base[f"{name}.weight"] + scale * ours[name + B].data @ ours[name + A].data
            _write(parameters, places[f"{name}.weight"], weight)
        model.zero_grad()
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        gradients = in_our_layout({name: tensor.grad for name, tensor in parameters.items()}, model.config)
        for name in targets:
            of_weight = gradients[f"{name}.weight"]
            ours[name + A].grad = scale * ours[name + B].data.T @ of_weight
            ours[name + B].grad = scale * of_weight @ ours[name + A].data.T
        first = first or {name: tensor.grad.numpy().copy() for name, tensor in ours.items() if tensor.grad is not None}
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(ours.values(), adam.clip_grad)))
        optimizer.step()
    return Tuned(losses, norms[0], first, {name: tensor.detach().numpy() for name, tensor in ours.items()})


def _values(built: Built) -> Any:
    """This rank's part of every adapter."""
    for owned, tensor in named_tensors(built.program, built.chunks):
        local = owned.local
        if local.param.low_rank:
            values = tensor.detach().numpy().copy()
            yield Piece(local.fqn, local.param.shape, owned.boxes, local.shard.global_shape, values)


def _is_same(before: torch.Tensor | None, after: torch.Tensor) -> bool:
    return before is None or torch.equal(before, after)


def _bytes_of(built: Built) -> tuple[int, int, int]:
    parameters = [parameter for chunk in built.chunks for parameter in chunk.parameters()]
    buffers = [buffer for chunk in built.chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    in_buffers = [buffer.param_data for buffer in buffers if buffer.param_data is not None]
    apart = [parameter for parameter in parameters if not (in_buffers and parameter.requires_grad)]
    weights = sum(tensor.nbytes for tensor in (*in_buffers, *apart))
    grads = sum(buffer.grad_data.nbytes for buffer in buffers)
    states = [
        state
        for part in built.optimizer.chained_optimizers
        if not part.is_stub_optimizer
        for state in part.optimizer.state.values()
    ]
    moments = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    return weights, grads, moments


def _data(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: tensor.data for name, tensor in parameters.items()}


def _places(parameters: Mapping[str, torch.nn.Parameter], config: Any) -> dict[str, torch.Tensor]:
    """Of each element under our names, its number among all elements of transformers' model."""
    numbered, begin = {}, 0
    for name, tensor in parameters.items():
        numbered[name] = torch.arange(begin, begin + tensor.numel(), dtype=torch.float64).view(tensor.shape)
        begin += tensor.numel()
    return {name: numbers.long() for name, numbers in in_our_layout(numbered, config).items()}


def _write(parameters: Mapping[str, torch.nn.Parameter], places: torch.Tensor, values: torch.Tensor) -> None:
    """Write elements by their numbers."""
    flat, numbers, begin = values.flatten(), places.flatten(), 0
    for tensor in parameters.values():
        inside = (numbers >= begin) & (numbers < begin + tensor.numel())
        tensor.data.view(-1)[numbers[inside] - begin] = flat[inside]
        begin += tensor.numel()
