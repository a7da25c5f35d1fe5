"""What ranks of a pipeline send to each other between their actions.

Between two actions a rank posts what the first of them made and what the second waits for, together, as
``ridgeline.parallel.traffic`` plans it: no two ranks wait for each other even if each waits there for all it posted.
Here a rank goes on, and waits when it posts again, or needs what is still on its way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch
from torch import distributed

from ridgeline.parallel.actions import Action


class Input(NamedTuple):
    """What an action needs of another: the activations of a forward, the gradients of a backward."""

    stage: int
    forward: bool
    microbatch: int


@attrs.frozen(kw_only=True, eq=False)
class Transfers:
    """The tensors between this rank's actions and others.

    Attributes:
        group: The ranks of the pipeline.
        owners: The one that owns each stage.
        shape, dtype, device: Of all tensors.
        at_once: Wait for what is posted before anything else is done.
        inputs: Tensors that actions to come need.
        under_way: What was posted and not yet waited for, and keeps alive what it sends.
        arriving: Of the inputs, those under way.
    """

    group: distributed.ProcessGroup
    owners: Sequence[int]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    at_once: bool
    inputs: dict[Input, torch.Tensor] = attrs.field(factory=dict, init=False)
    under_way: list[tuple[Sequence[distributed.Work], Sequence[distributed.P2POp]]] = attrs.field(
        factory=list, init=False
    )
    arriving: set[Input] = attrs.field(factory=set, init=False)


def post(transfers: Transfers, *, made: torch.Tensor | None, send_to: int | None, receives: Sequence[Action]) -> None:
    """Wait for what was posted before, then send what an action made, and receive what others made.

    Args:
        transfers: Of this rank.
        made: By the action before; not written to until it is sent.
        send_to: The pipeline rank that needs it; None when none other does.
        receives: Actions of other ranks whose output arrives, in the order in which they are sent.
    """
    wait(transfers)
    ops: list[distributed.P2POp] = []
    if send_to is not None:
        assert made is not None
        ops.append(distributed.P2POp(distributed.isend, made.contiguous(), group=transfers.group, group_peer=send_to))
    for action in receives:
        tensor = torch.empty(transfers.shape, dtype=transfers.dtype, device=transfers.device)
        sender = transfers.owners[action.stage]
        ops.append(distributed.P2POp(distributed.irecv, tensor, group=transfers.group, group_peer=sender))
        transfers.inputs[made_by(action)] = tensor
        transfers.arriving.add(made_by(action))
    if ops:
        transfers.under_way.append((distributed.batch_isend_irecv(ops), ops))
    if transfers.at_once:
        wait(transfers)


def take(transfers: Transfers, needed: Input) -> torch.Tensor:
    """An input, once it is here."""
    if needed in transfers.arriving:
        wait(transfers)
    return transfers.inputs.pop(needed)


def wait(transfers: Transfers) -> None:
    """Wait for all that is under way."""
    while transfers.under_way:
        works, _ = transfers.under_way.pop()
        for work in works:
            work.wait()
    transfers.arriving.clear()


def made_by(action: Action) -> Input:
    """The input that an action makes: of the next stage's forward, or the previous one's backward."""
    forward = action.kind == "F"
    return Input(action.stage + (1 if forward else -1), forward, action.microbatch)
