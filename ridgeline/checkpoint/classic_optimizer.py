"""The optimizer's state in a file of the classic layout: which parameters it numbers, in which groups, as buffers.

    optimizer   {"optimizer": {"state": {N: {"step", "exp_avg", "exp_avg_sq"}}, "param_groups": [{"params": [N, ...]}]},
                 "fp32_from_fp16_params": [[master, ...] of each group]}; without masters what is under "optimizer"
                alone; a list of two where experts are spread, theirs the second

Parameters are numbered group by group, within a group in the order of modules: those with weight decay, then biases and
all of one dim. Each keeps three tensors of its own shape, which lie as it does.

Source:
    megatron-core 0.16.1: optimizer/__init__.py, ``_get_param_groups`` (groups and their order, two optimizers);
    optimizer/optimizer.py, ``Float16OptimizerWithFloat16Params.state_dict``, ``FP32Optimizer.state_dict``.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ridgeline.checkpoint import module_order
from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.names import OptimizerPart, optimizer_key, params_of
from ridgeline.checkpoint.pieces import Buffer
from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.model import ModelSpec

MOMENTS: tuple[OptimizerPart, ...] = ("exp_avg", "exp_avg_sq")
MASTER: OptimizerPart = "fp32_param"
ORDERED = (
    *module_order.BEFORE, *module_order.ATTENTION, *module_order.MEGATRON_LATENT, *module_order.BETWEEN,
    *module_order.FEED_FORWARD, "embedding.word_embeddings.", "embedding.position_embeddings.", "final_layernorm.",
    "output_layer.",
)  # fmt: skip
"""What names hold whose order is Megatron-core's own, and known."""


class Group(NamedTuple):
    """Parameters that one group of one optimizer updates, in its order.

    Attributes:
        experts: They are experts' that are spread over ranks, which have an optimizer of their own.
        decays: Their weights decay.
        buffers: The parameters, as the file holds them.
    """

    experts: bool
    decays: bool
    buffers: tuple[Buffer, ...]


def optimizers_of(model: ModelSpec, buffers: Iterable[Buffer], *, ep: int) -> tuple[tuple[Group, ...], ...]:
    """The groups of each optimizer of a rank.

    Args:
        model: Some rank of it has parameters of each group; groups that are empty on this one are there too.
        buffers: What the rank's file holds, in the order of modules.
        ep: Experts are told from other parameters where it is more than 1.
    """
    kinds = {
        (ep > 1 and param.experts > 0, len(param.shape) > 1 and not param.name.endswith(".bias"))
        for param in params_of(model).values()
        if param.trains
    }
    trained = [buffer for buffer in buffers if not buffer.name.endswith(".expert_bias")]
    groups = [
        Group(experts, decays, tuple(members_of(trained, experts=experts, decays=decays, ep=ep)))
        for experts in (False, True)
        for decays in (True, False)
        if (experts, decays) in kinds
    ]
    both = (tuple(group for group in groups if group.experts == experts) for experts in (False, True))
    return tuple(optimizer for optimizer in both if optimizer)


def members_of(buffers: Iterable[Buffer], *, experts: bool, decays: bool, ep: int) -> Iterator[Buffer]:
    """The trained parameters that belong to a group, in the order given."""
    for buffer in buffers:
        is_expert = ep > 1 and ".mlp.experts." in buffer.name
        if is_expert == experts and decays == (len(buffer.shape) > 1 and not buffer.name.endswith(".bias")):
            yield buffer


def state_buffer(part: OptimizerPart, buffer: Buffer) -> Buffer:
    """What an optimizer keeps of a parameter, which lies as the parameter does.

    Example:
        >>> state_buffer("exp_avg", Buffer("model/output_layer.weight", (8, 4), ())).name
        'exp_avg/model/output_layer.weight'
    """
    kept = [
        tuple(piece._replace(key=optimizer_key(part, piece.key)) for piece in pieces)
        for pieces in (buffer.pieces, buffer.padding)
    ]
    return Buffer(f"{part}/{buffer.name}", buffer.shape, *kept)


def check_ordered(model: ModelSpec, form: ClassicForm) -> None:
    """Raise where the order in which the loading modules register parameters is not known.

    Raises:
        PlanError: Every reason.
    """
    rule, without = "numbers parameters in an order that is not known here", "leave out the optimizer's state"
    names = [fqn for fqn in params_of(model) if fqn.startswith("mtp.") or not any(part in fqn for part in ORDERED)]
    problems = []
    if form.impl != "local":
        problems.append(Problem("impl", form.impl, rule, f"use local, or {without}"))
    if form.tp_extend_ep:
        problems.append(Problem("tp_extend_ep", True, rule, without))
    if form.dialect == "mindspeed" and any("linear_kv_down_proj." in fqn for fqn in params_of(model)):
        problems.append(Problem("dialect", form.dialect, f"{rule}, in latent attention", "use megatron"))
    if names:
        problems.append(Problem("model", model.name, f"has {names[0]}, and {rule}", without))
    if problems:
        raise PlanError(problems)
