"""A residual sum and its RMSNorm in plain torch.

Legend: ``h`` = the normalised dim; ``...`` = any others.
"""

from torch import Tensor

from ridgeline.kernels.reference.rms_norm import rms_norm


def add_rms_norm(x: Tensor, residual: Tensor, weight_h: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Add, then normalise.

    Args:
        x: (..., h), float.
        residual: The same.
        weight_h: (h,), the same dtype.
        eps: > 0.

    Returns:
        The normalised sum and the sum itself, each (..., h) in the dtype of ``x``.
    """
    total = x + residual
    return rms_norm(total, weight_h, eps=eps), total
