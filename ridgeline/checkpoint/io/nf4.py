"""NF4: weights in 4 bits, the scales of their blocks in 8, as QLoRA keeps a frozen model, bit for bit bitsandbytes'.

    64 weights share the largest absolute value among them; each is one of 16 numbers times that
    256 such scales, less their mean, share theirs; each is one of 256 numbers times that

Source:
    arXiv 2305.14314, section 3 and appendix E; bitsandbytes 0.50.2, functional.py (``get_4bit_type``,
    ``create_dynamic_map``, ``quantize_4bit``) and backends/default/ops.py (which number is nearest, order of nibbles).
"""

import math

import attrs
import torch

BLOCK, NESTED_BLOCK = 64, 256

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, with a zero among them."""


@attrs.frozen(eq=False)
class Quantised:
    """A tensor in NF4.

    Attributes:
        packed: (elements / 2,) uint8, the earlier element in the upper four bits.
        scales: (blocks,) uint8.
        nested: (blocks / 256,) fp32, the largest of each 256 scales.
        offset: fp32, the mean of all scales.
        shape: Of the tensor.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    nested: torch.Tensor
    offset: torch.Tensor
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(part.nbytes for part in (self.packed, self.scales, self.nested, self.offset))


def quantise(tensor: torch.Tensor) -> Quantised:
    """A tensor of any shape and floating dtype in NF4."""
    nibbles, largest = _nearest(tensor.reshape(-1).float(), torch.tensor(NF4), BLOCK)
    nibbles = torch.nn.functional.pad(nibbles, (0, nibbles.numel() % 2))
    offset = largest.mean()
    scales, nested = _nearest(largest - offset, dynamic_map(), NESTED_BLOCK)
    return Quantised(nibbles[::2] << 4 | nibbles[1::2], scales, nested, offset, tuple(tensor.shape))


def dequantise(quantised: Quantised, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """The tensor that NF4 stands for."""
    scales = _times(dynamic_map()[quantised.scales.long()], quantised.nested, NESTED_BLOCK) + quantised.offset
    nibbles = torch.stack((quantised.packed >> 4, quantised.packed & 0xF), dim=1).reshape(-1).long()
    values = torch.tensor(NF4)[nibbles[: math.prod(quantised.shape)]]
    return _times(values, scales, BLOCK).to(dtype).view(quantised.shape)


def dynamic_map() -> torch.Tensor:
    """256 numbers from -1 to 1 whose steps grow with them, (256,) fp32: a sign, an exponent of ten, a fraction.

    Source:
        arXiv 1511.04561, section 2.2, and its form in bitsandbytes.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1)
        fractions = 10.0 ** (exponent - 6) * ((bounds[:-1] + bounds[1:]) / 2)
        values += [*fractions.tolist(), *(-fractions).tolist()]
    return torch.tensor(sorted(values))


def _nearest(flat: torch.Tensor, code: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of the number nearest to each element over its block's largest, and those, (blocks,)."""
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)
    largest = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / largest.clamp(min=1e-38))[:, None]).clamp(-1, 1).view(-1)[: flat.numel()]
    return torch.bucketize(scaled, (code[:-1] + code[1:]) / 2).to(torch.uint8), largest


def _times(flat: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    return flat * scales.repeat_interleave(block)[: flat.numel()]
