"""A weight's gradient, added to its sum over microbatches, in plain torch.

Legend: ``m`` = tokens, ``n`` = output features, ``k`` = input features.
"""

from torch import Tensor


def matmul_add(grad_sum_nk: Tensor, dy_mn: Tensor, x_mk: Tensor) -> None:
    """Add ``dy^T x`` in place, rounded once.

    Args:
        grad_sum_nk: (n, k), fp32 or wider.
        dy_mn: (m, n), float.
        x_mk: (m, k), the dtype of ``dy_mn``.
    """
    grad_sum_nk.addmm_(dy_mn.t().to(grad_sum_nk.dtype), x_mk.to(grad_sum_nk.dtype))
