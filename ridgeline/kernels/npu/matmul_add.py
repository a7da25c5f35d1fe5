"""A weight's gradient, added to its sum over microbatches, by torch's ops on an npu.

Legend: ``m`` = tokens, ``n`` = output features, ``k`` = input features.
"""

from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape


def matmul_add(grad_sum_nk: Tensor, dy_mn: Tensor, x_mk: Tensor) -> None:
    """As `ridgeline.kernels.reference.matmul_add.matmul_add`, but the product is rounded to its inputs' dtype first.

    torch_npu has no kernel that multiplies half precision into an fp32 sum on an Atlas A2 or A3.
    """
    refuse_dtypes("matmul_add", dy_mn=dy_mn, x_mk=x_mk)
    refuse_shape("matmul_add", "x_mk", x_mk, (len(dy_mn), x_mk.shape[-1]))
    refuse_shape("matmul_add", "grad_sum_nk", grad_sum_nk, (dy_mn.shape[-1], x_mk.shape[-1]))
    if dy_mn.dtype == grad_sum_nk.dtype:
        grad_sum_nk.addmm_(dy_mn.t(), x_mk)
    else:
        grad_sum_nk.add_(dy_mn.t() @ x_mk)
