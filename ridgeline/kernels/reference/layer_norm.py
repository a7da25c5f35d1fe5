"""Layer normalisation in plain torch, which is a fused kernel wherever torch runs.

Legend: ``h`` = the normalised dim; ``...`` = any others.
"""

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight_h: Tensor, bias_h: Tensor | None, *, eps: float) -> Tensor:
    """Scale each vector of the last dim to mean zero and variance one, then by a learned weight and bias.

    Args:
        x: (..., h), float.
        weight_h: (h,), the dtype of ``x``.
        bias_h: The same; None for none.
        eps: > 0.

    Returns:
        (..., h), the dtype of ``x``.

    Source:
        arXiv 1607.06450, equation 3.
    """
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight_h, bias_h, eps)
