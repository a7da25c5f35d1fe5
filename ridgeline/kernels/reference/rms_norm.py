"""Root-mean-square normalisation in plain torch.

Legend: ``h`` = the normalised dim; ``...`` = any others.
"""

import torch


def rms_norm(x: torch.Tensor, weight_h: torch.Tensor, *, eps: float, zero_centred: bool = False) -> torch.Tensor:
    """Scale each vector of the last dim to a mean square of one, then by a learned weight.

    ``y = x / sqrt(mean(x^2) + eps) * weight``, computed in fp32 or wider and rounded once.

    Args:
        x: (..., h), float.
        weight_h: (h,), the dtype of ``x``.
        eps: > 0.
        zero_centred: The weight is what is added to one, as in Gemma.

    Returns:
        (..., h), the dtype of ``x``.

    Source:
        arXiv 1910.07467, equation 4.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=0.0)
        tensor([[0.8485, 1.1314]])
    """
    if zero_centred:
        weight_h = 1 + weight_h
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight_h, eps)
