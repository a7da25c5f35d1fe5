"""One AdamW step of one tensor on torch_npu."""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape


def adamw(
    param: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """As `ridgeline.kernels.reference.adamw.adamw`; the parameter in fp32."""
    refuse_dtypes("adamw", allowed=(torch.float32,), param=param)
    refuse_dtypes("adamw", mean=mean, square=square)
    for path, tensor in (("grad", grad), ("mean", mean), ("square", square)):
        refuse_shape("adamw", path, tensor, tuple(param.shape))
    # The kernel would round averages in bf16 before it uses them.
    wide_mean, wide_square = mean.float(), square.float()
    torch.ops.npu.npu_apply_adam_w(
        beta1 ** (step - 1),  # the op multiplies by beta1 once more
        beta2 ** (step - 1),
        lr,
        weight_decay,
        beta1,
        beta2,
        eps,
        grad.float(),
        None,
        False,
        False,
        out=(param, wide_mean, wide_square),
    )
    if mean.dtype != torch.float32:
        mean.copy_(wide_mean)
        square.copy_(wide_square)
