"""Initial weights that depend on the seed and the parameter's name alone: every layout starts from the same model.

A tensor is drawn in blocks of rows, each from a generator of its own; a rank draws the blocks that its shard meets. One
block of fp32 numbers is alive at a time, whatever the size of the tensor.
"""

import hashlib
import math
from collections.abc import Iterator

import torch

from ridgeline.core.model import ModelSpec
from ridgeline.core.params import Param, Role
from ridgeline.parallel.shards import Box

BLOCK_ELEMENTS = 1 << 22


def initial_std(model: ModelSpec, role: Role) -> float:
    """Standard deviation of a matrix's initial values; what adds to the residual stream is narrower in deep models.

    Source:
        megatron-core 0.16.1, transformer/transformer_config.py, ``output_layer_init_method``.
    """
    return model.init_std / math.sqrt(2 * model.num_layers) if role in ("out", "down") else model.init_std


@torch.no_grad()
def fill(tensor: torch.Tensor, param: Param, fqn: str, boxes: tuple[Box, ...], *, seed: int, std: float) -> None:
    """Write a rank's part of a parameter's initial value: norms are 1, biases 0, matrices normal.

    Args:
        tensor: The part, any dtype, any device.
        param: What it is a part of.
        fqn: The name of the whole, which names the draw.
        boxes: Where the part lies in the whole, box after box along dim 0; rows beyond the whole are padding, 0.
        seed: Of the run.
        std: Of a matrix.
    """
    if len(param.shape) == 1:
        tensor.fill_(1.0 if param.role in ("norm", "head_norm") else 0.0)
        return
    tensor.zero_()
    begin = 0
    for (first, last), (left, right) in boxes:
        for row, values in _rows(fqn, param.shape, first, last, seed=seed, std=std):
            tensor[begin + row - first : begin + row - first + len(values)].copy_(values[:, left:right])
        begin += last - first


def _rows(
    fqn: str, shape: tuple[int, ...], first: int, last: int, *, seed: int, std: float
) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of the whole from ``first`` to ``last``, piece by piece, each with the index of its first row."""
    num_rows, width = shape
    size = max(1, BLOCK_ELEMENTS // width)
    for begin in range(first // size * size, min(last, num_rows), size):
        end = min(begin + size, num_rows)
        generator = torch.Generator(device="cpu").manual_seed(_key(seed, fqn, begin))
        values = torch.randn(end - begin, width, generator=generator, device="cpu").mul_(std)
        row = max(begin, first)
        yield row, values[row - begin : min(end, last) - begin]


def _key(seed: int, fqn: str, row: int) -> int:
    """A number for one block, by a hash that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{fqn}/{row}".encode()).digest()[:8], "little") >> 1
