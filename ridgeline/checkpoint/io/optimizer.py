"""Megatron-core's optimizers as a list: for each parameter, what is updated on this rank and what Adam remembers of it.

Its own ways into and out of this state are not used: the distributed optimizer gathers all of it on every rank, a load
before the first step fails an assertion, and after a load one ``step`` tensor serves all parameters, so that Adam
counts it once for each.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from ridgeline.core.errors import CheckpointError, LoweringError

MOMENTS = ("exp_avg", "exp_avg_sq")


@attrs.frozen(eq=False)
class Slot:
    """What the optimizer keeps of one parameter.

    Attributes:
        param: The model's parameter.
        start, stop: The flat range of it that this rank updates.
        main: What is updated: (stop - start,), fp32.
        moments: Adam's averages, by name: (stop - start,) each.
        state: Adam's own record, which holds the moments and ``step``.
        is_master: ``main`` is a copy in higher precision, not the parameter itself.
        is_shard: Other dp ranks update the rest of the parameter.
    """

    param: torch.nn.Parameter
    start: int
    stop: int
    main: torch.Tensor
    moments: dict[str, torch.Tensor]
    state: dict[str, Any]
    is_master: bool
    is_shard: bool


def slots_of(optimizer: MegatronOptimizer) -> list[Slot]:
    """Every parameter that an optimizer updates on this rank, with its state, which is made now if no step has made it.

    Raises:
        LoweringError: The optimizer is none whose state is known here.
    """
    slots = []
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not part.is_stub_optimizer:
            is_shard = isinstance(part, DistributedOptimizer)
            slots += [
                _slot(part.optimizer, param, start, stop, main, is_shard=is_shard)
                for param, start, stop, main in (_shards(part) if is_shard else _wholes(part))
            ]
    return slots


def updates_made(slots: Sequence[Slot]) -> int:
    """How often Adam has updated: the same for all parameters."""
    counts = {int(slot.state["step"]) for slot in slots}
    if len(counts) > 1:
        raise CheckpointError(f"optimizer: its parameters were updated {sorted(counts)} times; they must agree")
    return counts.pop() if counts else 0


def set_updates_made(slots: Sequence[Slot], count: int) -> None:
    """Make Adam go on from its ``count``-th update; every parameter counts for itself."""
    for slot in slots:
        slot.state["step"] = torch.full_like(slot.state["step"], float(count))


def _shards(part: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, int, torch.Tensor]]:
    for param, (group, order) in part.model_param_group_index_map.items():
        reach = part._get_model_param_range_map(param)["param"]
        yield param, reach.start, reach.end, part.optimizer.param_groups[group]["params"][order]


def _wholes(part: MegatronOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, int, torch.Tensor]]:
    halves = getattr(part, "float16_groups", []), getattr(part, "fp32_from_float16_groups", [])
    masters = [pair for groups in zip(*halves, strict=True) for pair in zip(*groups, strict=True)]
    copies = {id(main) for _, main in masters}
    same = [(p, p) for group in part.optimizer.param_groups for p in group["params"] if id(p) not in copies]
    for param, main in (*masters, *same):
        yield param, 0, param.numel(), main


def _slot(
    adam: torch.optim.Optimizer,
    param: torch.nn.Parameter,
    start: int,
    stop: int,
    main: torch.Tensor,
    *,
    is_shard: bool,
) -> Slot:
    if not isinstance(adam, (torch.optim.Adam, torch.optim.AdamW)):
        raise LoweringError(f"optimizer={type(adam).__name__}: its state cannot be saved; use torch's Adam or AdamW")
    state = adam.state[main]
    if not state:
        state["step"] = torch.tensor(0.0, dtype=torch.float32)
        state.update({name: torch.zeros_like(main, memory_format=torch.preserve_format) for name in MOMENTS})
    return Slot(
        param=param,
        start=start,
        stop=stop,
        main=main.detach().view(-1),
        moments={name: state[name].view(-1) for name in MOMENTS},
        state=state,
        is_master=main.dtype != param.dtype,
        is_shard=is_shard,
    )
