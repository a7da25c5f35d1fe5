"""SwiGLU on torch_npu."""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless


def swiglu(gate_up: Tensor) -> Tensor:
    """As `ridgeline.kernels.reference.swiglu.swiglu`."""
    refuse_dtypes("swiglu", gate_up=gate_up)
    width = gate_up.shape[-1]
    refuse_unless(width % 2 == 0, "swiglu", "gate_up.shape[-1]", width, "must be even: a gate and an up half")
    return torch.ops.npu.npu_swiglu(gate_up, -1)
