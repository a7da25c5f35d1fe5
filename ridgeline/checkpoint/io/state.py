"""What training has to remember, as boxes of stored tensors over a rank's memory: written from it, read into it."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ridgeline.checkpoint.holdings import Holding, fragments_of, holdings_of, writes_shards, written_by
from ridgeline.checkpoint.io.optimizer import MOMENTS, Slot, slots_of
from ridgeline.checkpoint.io.torch_dist.index import Index
from ridgeline.checkpoint.io.torch_dist.writer import TensorItem
from ridgeline.checkpoint.names import optimizer_key, stored_box
from ridgeline.models.program import RankProgram
from ridgeline.models.runtime.build import Built
from ridgeline.models.runtime.model import named_tensors


def held(program: RankProgram, chunks: Sequence[torch.nn.Module]) -> list[tuple[Holding, torch.Tensor]]:
    """Every parameter of a rank, as what it is and as it lives."""
    tensors = (tensor for _, tensor in named_tensors(program, chunks))
    return list(zip(holdings_of(program), tensors, strict=True))


def items_to_write(built: Built) -> Iterator[TensorItem]:
    """Every box of model and optimizer that this rank is the one to write; those of all ranks make each tensor once."""
    params = held(built.program, built.chunks)
    mine = written_by(built.program.rank, [holding for holding, _ in params])
    writes = {id(param): index in mine for index, (_, param) in enumerate(params)}
    for holding, param in params:
        if writes[id(param)]:
            yield from _items(holding, holding.place.key, param.detach().view(-1), 0)
    for holding, slot in _slots(built, params):
        if writes_shards(built.program, holding) if slot.is_shard else writes[id(slot.param)]:
            if slot.is_master:
                key = optimizer_key("fp32_param", holding.place.key)
                yield from _items(holding, key, slot.main, slot.start, slot.stop)
            yield from _moment_items(holding, slot)


def items_to_read(built: Built, index: Index) -> Iterator[TensorItem]:
    """Every box of model and optimizer that this rank needs.

    A master copy that the checkpoint lacks, since it was saved in fp32 throughout, is read from the weights; and
    weights that are to be fp32 are read from the master copy, where there is one.
    """
    params = held(built.program, built.chunks)
    for holding, param in params:
        yield from _items(holding, _best_key(holding, param, index), param.detach().view(-1), 0)
    for holding, slot in _slots(built, params):
        if slot.is_master:
            yield from _items(holding, _best_key(holding, slot.main, index), slot.main, slot.start, slot.stop)
        yield from _moment_items(holding, slot)


def masters(built: Built) -> Iterator[tuple[Holding, Slot]]:
    """Every copy in higher precision that the optimizer keeps of a parameter on this rank."""
    return (pair for pair in _slots(built, held(built.program, built.chunks)) if pair[1].is_master)


def _slots(built: Built, params: list[tuple[Holding, torch.Tensor]]) -> Iterator[tuple[Holding, Slot]]:
    by_id: Mapping[int, Holding] = {id(param): holding for holding, param in params}
    for slot in slots_of(built.optimizer):
        yield by_id[id(slot.param)], slot


def _moment_items(holding: Holding, slot: Slot) -> Iterator[TensorItem]:
    for name in MOMENTS:
        yield from _items(holding, optimizer_key(name, holding.place.key), slot.moments[name], slot.start, slot.stop)


def _items(holding: Holding, key: str, flat: torch.Tensor, start: int, stop: int | None = None) -> Iterator[TensorItem]:
    """The boxes of a flat range, each with the part of ``flat`` (which begins at ``start``) that is its memory."""
    for fragment in fragments_of(holding, start, stop):
        box = stored_box(holding.place, fragment.box)
        begin = fragment.start - start
        data = flat[begin : begin + box.elements].view(box.shape)
        yield TensorItem(key, holding.place.shape, box, data)


def _best_key(holding: Holding, tensor: torch.Tensor, index: Index) -> str:
    master = optimizer_key("fp32_param", holding.place.key)
    return master if tensor.dtype == torch.float32 and master in index.tensors else holding.place.key
