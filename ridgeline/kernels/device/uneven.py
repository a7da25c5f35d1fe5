"""Collectives of parts of unequal length, which NCCL and HCCL have and gloo has not, by an all-to-all.

Expert tensor parallelism gathers what each of its ranks was dispatched, and no two were dispatched the same number of
tokens. The signatures are those of ``torch.distributed``, which does the work where all lengths are equal.
"""

from collections.abc import Sequence

import torch
from torch import distributed
from torch.distributed import ProcessGroup


def all_gather(outputs: Sequence[torch.Tensor], mine: torch.Tensor, group: ProcessGroup) -> None:
    """Fill ``outputs`` with every rank's part: ``outputs[rank]`` has the shape of that rank's ``mine``.

    Each rank sends its part to each, so that what it gets is their concatenation.
    """
    lengths = [len(output) for output in outputs]
    if len(set(lengths)) == 1:
        distributed.all_gather(list(outputs), mine, group=group)
        return
    gathered = mine.new_empty(sum(lengths), *mine.shape[1:])
    sent = mine.contiguous().repeat(len(outputs), *[1] * (mine.dim() - 1))
    distributed.all_to_all_single(gathered, sent, lengths, [len(mine)] * len(outputs), group=group)
    for output, part in zip(outputs, gathered.split(lengths), strict=True):
        output.copy_(part)


def reduce_scatter(output: torch.Tensor, parts: Sequence[torch.Tensor], group: ProcessGroup) -> None:
    """Sum over ranks the part of this one into ``output``: ``parts[rank]`` has the shape of that rank's ``output``."""
    lengths = [len(part) for part in parts]
    if len(set(lengths)) == 1:
        distributed.reduce_scatter(output, list(parts), group=group)
        return
    addends = output.new_empty(len(parts), *output.shape)
    received = addends.view(len(parts) * len(output), *output.shape[1:])
    distributed.all_to_all_single(received, torch.cat(list(parts)), [len(output)] * len(parts), lengths, group=group)
    torch.sum(addends, dim=0, out=output)
