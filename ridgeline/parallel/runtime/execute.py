"""The schedule carried out: a rank's actions in their order, with what they send and receive."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import custom_backward, deallocate_output_tensor
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_attr_wrapped_model, get_model_config
from torch import distributed

from ridgeline.parallel.actions import Action
from ridgeline.parallel.runtime.deferred import Product, carry_out, collecting
from ridgeline.parallel.runtime.gradients import Chunks, after_action, before_action, completion_of, finish_gradients
from ridgeline.parallel.runtime.transfers import Input, Transfers, made_by, post, take, wait
from ridgeline.parallel.traffic import Step

ForwardStep: TypeAlias = Callable[[torch.nn.Module, Any], tuple[torch.Tensor, Any]]
"""A microbatch through a chunk whose input has been set: what the next stage needs, or the loss to go back from; and a
report, None of chunks that have nothing to tell."""

Cell: TypeAlias = tuple[int, int]
"""A stage and a microbatch."""


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """One step on its way.

    Attributes:
        chunks: Of this rank, by stage.
        config: Of all of them.
        forward: Of one microbatch and one chunk.
        microbatches: Of this dp rank.
        last_stage: Of the model.
        trains: Whether forwards are kept for backwards.
        transfers: Between this rank's actions and others.
        kept: Input and output of each forward whose backward is to come.
        waiting: Weight gradients of each backward that put them aside.
        reports: Of microbatches.
    """

    chunks: Chunks
    config: TransformerConfig
    forward: ForwardStep
    microbatches: Sequence[Any]
    last_stage: int
    trains: bool
    transfers: Transfers
    kept: dict[Cell, tuple[torch.Tensor | None, torch.Tensor]] = attrs.field(factory=dict, init=False)
    waiting: dict[Cell, list[Product]] = attrs.field(factory=dict, init=False)
    reports: dict[int, Any] = attrs.field(factory=dict, init=False)


def run_schedule(
    chunks: Chunks,
    forward: ForwardStep,
    *,
    steps: Sequence[Step],
    owners: Sequence[int],
    microbatches: Sequence[Any],
    seq_len: int,
    mbs: int,
    device: torch.device,
    whole_gradients: bool = False,
) -> list[Any]:
    """Run every microbatch through every chunk of this rank, and its backward, in the order of the schedule.

    Gradients are reduced in the end, where there are backwards.

    Args:
        chunks: Of this rank, by stage.
        forward: Of one microbatch and one chunk.
        steps: This rank's actions, with what they send and receive.
        owners: The pipeline rank of each stage.
        microbatches: Of this dp rank, as many as the actions number.
        seq_len: Tokens of a sample.
        mbs: Samples of a microbatch.
        device: Where they are computed.
        whole_gradients: Reduce each gradient to every dp rank, even if the optimizer needs but a shard of it.

    Returns:
        What was reported of each microbatch, in their order.
    """
    actions = [step.action for step in steps]
    trains = any(action.kind != "F" for action in actions)
    config: Any = get_model_config(next(iter(chunks.values())))
    run = Run(
        chunks=chunks,
        config=config,
        forward=forward,
        microbatches=microbatches,
        last_stage=len(owners) - 1,
        trains=trains,
        transfers=_transfers(config, owners, seq_len=seq_len, mbs=mbs, device=device),
    )
    completion = completion_of(chunks, actions, whole=whole_gradients)
    made, send_to = None, None
    for step in steps:
        post(run.transfers, made=made, send_to=send_to, receives=step.receives)
        before_action(completion, step.action)
        made, send_to = _carried_out(run, step.action), step.send_to
        after_action(completion, step.action)
        if made is not None and send_to is None:
            run.transfers.inputs[made_by(step.action)] = made
    post(run.transfers, made=made, send_to=send_to, receives=())
    wait(run.transfers)
    if trains:
        finish_gradients(completion)
    return [run.reports[microbatch] for microbatch in sorted(run.reports)]


def _transfers(
    config: TransformerConfig, owners: Sequence[int], *, seq_len: int, mbs: int, device: torch.device
) -> Transfers:
    group = parallel_state.get_pipeline_model_parallel_group()
    assert isinstance(group, distributed.ProcessGroup)
    parts = config.context_parallel_size * (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    return Transfers(
        group=group,
        owners=owners,
        shape=(seq_len // parts, mbs, config.hidden_size),
        dtype=config.pipeline_dtype,
        device=device,
        at_once=config.batch_p2p_comm,
    )


def _carried_out(run: Run, action: Action) -> torch.Tensor | None:
    """What an action makes for another one."""
    stage, kind, microbatch = action
    match kind:
        case "F":
            return _forward(run, stage, microbatch)
        case "B":
            return _backward(run, stage, microbatch)
        case "I":
            with collecting(run.chunks[stage].deferred) as run.waiting[stage, microbatch]:
                return _backward(run, stage, microbatch)
        case "W":
            return carry_out(run.chunks[stage].deferred, run.waiting.pop((stage, microbatch)))
        case _:
            raise AssertionError(action)  # lowering refuses all others


def _forward(run: Run, stage: int, microbatch: int) -> torch.Tensor | None:
    """What the next stage needs."""
    received = take(run.transfers, Input(stage, True, microbatch)) if stage else None
    if received is not None and run.trains:
        received.requires_grad_()
    get_attr_wrapped_model(run.chunks[stage], "set_input_tensor")([received])
    output, report = run.forward(run.chunks[stage], run.microbatches[microbatch])
    if report is not None:
        run.reports[microbatch] = report
    if run.trains:
        run.kept[stage, microbatch] = received, output
    if stage == run.last_stage:
        return None
    sent = output.detach()
    if run.trains:
        deallocate_output_tensor(output, run.config.deallocate_pipeline_outputs)
    return sent


def _backward(run: Run, stage: int, microbatch: int) -> torch.Tensor | None:
    """What the stage before needs: the gradient of its output."""
    gradient = None if stage == run.last_stage else take(run.transfers, Input(stage, False, microbatch))
    received, output = run.kept.pop((stage, microbatch))
    if not output.requires_grad:  # all that led to it is frozen
        return None
    if run.config.deallocate_pipeline_outputs:
        custom_backward(output, gradient)
    else:
        torch.autograd.backward(output, gradient)
    return None if received is None else received.grad
