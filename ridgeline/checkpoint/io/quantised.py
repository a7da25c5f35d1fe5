"""Published weights of 8 and 4 bits, read as bf16: any part of them, and only that part.

    X (fp8), X_scale_inv              blocks of 128 by 128 share a scale               DeepSeek-V3
    X_packed, X_scale, X_shape        eight 4-bit integers a word, groups share one    Kimi-K2, compressed-tensors
    X_blocks, X_scales                MXFP4: 32 in a row share a power of two          GPT-OSS

A scale is multiplied in fp32 and the product rounded to bf16, once.

Source:
    deepseek-ai/DeepSeek-V3, inference/kernel.py, ``weight_dequant``; compressed-tensors 0.12,
    compressors/quantized_compressors/pack_quantized.py; OCP Microscaling Formats 1.0, section 5.3.3; transformers 5.23,
    integrations/mxfp4.py (the order of nibbles, and that the experts' matrices are transposed).
"""

import math
from collections.abc import Mapping

import torch

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.pieces import row_major
from ridgeline.core.errors import CheckpointError

FP8_BLOCK = 128
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def dequantised(tensors: Mapping[str, FileTensor]) -> dict[str, FileTensor]:
    """Tensors with each quantised one, and what belongs to it, replaced by the one it stands for.

    Raises:
        CheckpointError: The parts of one do not fit each other.
    """
    plain = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype in FP8 and f"{name}_scale_inv" in tensors:
            plain[name] = _fp8(name, tensor, plain.pop(f"{name}_scale_inv"))
        elif name.endswith("_packed") and {f"{name[:-7]}_scale", f"{name[:-7]}_shape"} <= tensors.keys():
            base = name.removesuffix("_packed")
            parts = (plain.pop(base + part) for part in ("_packed", "_scale", "_shape"))
            plain[base] = _int4(base, *parts)
        elif name.endswith("_blocks") and f"{name[:-7]}_scales" in tensors:
            base = name.removesuffix("_blocks")
            plain[base] = _mxfp4(base, plain.pop(name), plain.pop(f"{base}_scales"))
    return plain


def _fp8(name: str, weight: FileTensor, scales: FileTensor) -> FileTensor:
    expected = tuple(math.ceil(size / FP8_BLOCK) for size in weight.shape)
    _check(name, "_scale_inv", scales.shape, expected)

    def strided(start: int, shape: Shape, strides: Shape) -> torch.Tensor:
        rows, columns = places(start, shape, strides, weight.shape[-1])
        scale = _all(scales).float()[rows // FP8_BLOCK, columns // FP8_BLOCK]
        return (weight.strided(start, shape, strides).float() * scale).to(torch.bfloat16)

    return FileTensor(torch.bfloat16, weight.shape, strided)


def _int4(name: str, packed: FileTensor, scales: FileTensor, real: FileTensor) -> FileTensor:
    rows_, columns_ = (int(size) for size in _all(real).tolist())
    _check(name, "_packed", packed.shape, (rows_, math.ceil(columns_ / 8)))
    _check(name, "_scale", scales.shape[:1], (rows_,))
    group = math.ceil(columns_ / scales.shape[1])

    def strided(start: int, shape: Shape, strides: Shape) -> torch.Tensor:
        rows, columns = places(start, shape, strides, columns_)
        words = _all(packed)[rows, columns // 8]
        integers = ((words >> (4 * (columns % 8))) & 0xF) - 8
        return (integers.float() * _all(scales)[rows, columns // group].float()).to(torch.bfloat16)

    return FileTensor(torch.bfloat16, (rows_, columns_), strided)


def _mxfp4(name: str, blocks: FileTensor, scales: FileTensor) -> FileTensor:
    """(experts, outputs, blocks, 16 bytes) as (experts, inputs, outputs)."""
    experts, outputs, count, size = blocks.shape
    _check(name, "_scales", scales.shape, (experts, outputs, count))
    inputs = count * size * 2

    def strided(start: int, shape: Shape, strides: Shape) -> torch.Tensor:
        rows, output = places(start, shape, strides, outputs)
        expert, input_ = rows // inputs, rows % inputs
        block, place = input_ // (2 * size), input_ % (2 * size)
        pair = _all(blocks)[expert, output, block, place // 2].int()
        values = torch.tensor(_FP4)[(pair >> (4 * (place % 2))) & 0xF]
        return torch.ldexp(values, _all(scales)[expert, output, block].int() - 127).to(torch.bfloat16)

    return FileTensor(torch.bfloat16, (experts, inputs, outputs), strided)


def places(start: int, shape: Shape, strides: Shape, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The row and the column of every element of a part of a row-major matrix; they broadcast to its shape."""
    row, column = divmod(start, width)
    rows, columns = (torch.full((1,) * len(shape), first) for first in (row, column))
    for dim, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size == 1:
            continue
        steps = torch.arange(size).view([-1 if d == dim else 1 for d in range(len(shape))])
        if stride % width == 0:
            rows = rows + steps * (stride // width)
        else:
            columns = columns + steps * stride
    assert int(columns.max()) < width, (start, shape, strides, width)
    return rows, columns


def _all(tensor: FileTensor) -> torch.Tensor:
    return tensor.strided(0, tensor.shape, row_major(tensor.shape))


def _check(name: str, part: str, found: Shape, expected: Shape) -> None:
    if found != expected:
        raise CheckpointError(f"tensor={name}{part}: has shape {found}, expected {expected}")
