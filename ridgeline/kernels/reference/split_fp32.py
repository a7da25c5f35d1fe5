"""fp32 master weights that share their memory with the bf16 weights, in plain torch.

An fp32 number is the bf16 number of its upper half and a residual, its lower half. Of a buffer of n numbers the upper
halves move together, so that they are the contiguous bf16 weights of forward and backward; an optimizer step moves them
back. No bf16 copy is held: two bytes less a parameter.
"""

import attrs
import torch
from torch import Tensor

_HALF = 1 << 15
"""Half of the last bit that bf16 keeps: adding it to the bits of an fp32 number rounds the upper half to nearest, and
what is taken away again restores the number bit for bit."""


@attrs.frozen(eq=False)
class SplitFp32:
    """A buffer, and both ways to read it; only one of them holds at a time.

    Attributes:
        halves: (2n,) bf16: the memory itself.
    """

    halves: Tensor

    @property
    def whole(self) -> Tensor:
        """(n,) fp32, after `join`."""
        return self.halves.view(torch.float32)

    @property
    def upper(self) -> Tensor:
        """(n,) bf16, after `split`: the numbers rounded to nearest, ties away from zero."""
        return self.halves[self.halves.numel() // 2 :]

    def split(self) -> None:
        """From fp32 numbers to bf16 numbers and residuals; a copy of the buffer is made on the way."""
        self.halves.view(torch.int32).add_(_HALF)
        _transpose(self.halves.view(torch.int16), 2)

    def join(self) -> None:
        """Back, bit for bit."""
        _transpose(self.halves.view(torch.int16), self.halves.numel() // 2)
        self.halves.view(torch.int32).sub_(_HALF)


def split_fp32(values: Tensor) -> SplitFp32:
    """A buffer that holds fp32 numbers, joined.

    Args:
        values: Any shape, fp32; they are copied.
    """
    split = SplitFp32(torch.empty(2 * values.numel(), dtype=torch.bfloat16, device=values.device))
    split.whole.copy_(values.flatten())
    return split


def _transpose(flat: Tensor, columns: int) -> None:
    """Turn (rows, columns) into (columns, rows) within the same memory."""
    flat.copy_(flat.view(-1, columns).t().reshape(-1))
