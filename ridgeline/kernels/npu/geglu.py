"""GeGLU on torch_npu."""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless


def geglu(gate_up: Tensor, *, approximate: bool) -> Tensor:
    """As `ridgeline.kernels.reference.geglu.geglu`."""
    refuse_dtypes("geglu", gate_up=gate_up)
    width = gate_up.shape[-1]
    refuse_unless(width % 2 == 0, "geglu", "gate_up.shape[-1]", width, "must be even: a gate and an up half")
    # By default the kernel activates the right half.
    return torch.ops.npu.npu_geglu(gate_up, -1, int(approximate), True)[0]
