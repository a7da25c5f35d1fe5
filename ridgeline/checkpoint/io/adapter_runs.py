"""The adapters of a run, out of its checkpoints: merged into the weights that are read of them, or written for PEFT.

A checkpoint of such a run holds the frozen weights and the adapters beside them, so that any layout resumes it.
"""

from collections.abc import Mapping

import attrs
import torch

from ridgeline.checkpoint.boxes import whole
from ridgeline.checkpoint.io.adapters import plus_product
from ridgeline.checkpoint.io.sources import Opened, weights_in
from ridgeline.checkpoint.names import adapted_params, stored
from ridgeline.core.job import Lora
from ridgeline.core.params.adapters import A, B


def with_merged_adapters(opened: Opened, adapter: Lora) -> Opened:
    """A saved step with its adapters merged into the weights that are read of it."""
    params = adapted_params(opened.model, adapter)
    by_place = {}
    for fqn, pair in pairs_of(opened, adapter).items():
        place = stored(fqn, params[fqn])
        by_place[place.key, place.expert] = pair
    adapted = {key for key, _ in by_place}
    tensors = dict(opened.tensors)
    for holder in opened.holders:
        for buffer in holder.buffers:
            for piece in buffer.pieces:
                if piece.key not in adapted:
                    continue
                box = piece.box
                *experts, (rows, more_rows), (columns, more_columns) = zip(box.offset, box.shape, strict=True)
                assert all(count == 1 for _, count in experts), piece  # a run writes each expert's by itself
                a, b = by_place[piece.key, experts[0][0] if experts else None]
                part_a = a[:, columns : columns + more_columns] * (adapter.alpha / adapter.rank)
                key = holder.name, buffer.name
                tensors[key] = plus_product(tensors[key], part_a, b[rows : rows + more_rows])
    return attrs.evolve(opened, tensors=tensors)


def pairs_of(opened: Opened, adapter: Lora) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """A (rank, inputs) and B (outputs, rank), fp32, of each weight that has an adapter, by its full name."""
    params = adapted_params(opened.model, adapter)
    read, halves = weights_in(opened, params), {}
    for fqn, param in params.items():
        if param.low_rank:
            halves[fqn] = torch.empty(param.shape)
            read(fqn, whole(param.shape), halves[fqn])
    names = [fqn.removesuffix(A) for fqn in halves if fqn.endswith(A)]
    return {f"{name}.weight": (halves[name + A], halves[name + B]) for name in names}
