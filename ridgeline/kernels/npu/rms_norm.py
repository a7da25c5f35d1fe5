"""RMSNorm on torch_npu."""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless


def rms_norm(x: Tensor, weight_h: Tensor, *, eps: float, zero_centred: bool = False) -> Tensor:
    """As `ridgeline.kernels.reference.rms_norm.rms_norm`; of 2 to 8 dims."""
    refuse_dtypes("rms_norm", x=x, weight_h=weight_h)
    refuse_unless(2 <= x.dim() <= 8, "rms_norm", "x.dim()", x.dim(), "must be 2 .. 8", "reshape x")
    refuse_shape("rms_norm", "weight_h", weight_h, (x.shape[-1],))
    # npu_gemma_rms_norm, which adds the one itself, has no derivative.
    return torch.ops.npu.npu_rms_norm(x, 1 + weight_h if zero_centred else weight_h, eps)[0]
