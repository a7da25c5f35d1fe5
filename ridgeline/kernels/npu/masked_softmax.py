"""Scaled masked softmax on torch_npu."""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless


def masked_softmax(scores_bnst: Tensor, hidden: Tensor, *, scale: float) -> Tensor:
    """As `ridgeline.kernels.reference.masked_softmax.masked_softmax`; s and t multiples of 32 from 32 to 4096."""
    refuse_dtypes("masked_softmax", scores_bnst=scores_bnst)
    refuse_dtypes("masked_softmax", allowed=(torch.bool,), hidden=hidden)
    for dim, size in zip("st", scores_bnst.shape[-2:], strict=True):
        fits = 32 <= size <= 4096 and size % 32 == 0
        refuse_unless(fits, "masked_softmax", dim, size, "must be a multiple of 32, 32 .. 4096", "use flash attention")
    return torch.ops.npu.npu_scaled_masked_softmax(scores_bnst, hidden, scale, False)
