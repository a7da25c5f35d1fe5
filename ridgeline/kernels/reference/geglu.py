"""The gated activation GeGLU in plain torch."""

import torch
from torch import Tensor


def geglu(gate_up: Tensor, *, approximate: bool) -> Tensor:
    """Gate one half of the last dim by the other: ``gelu(gate) * up``.

    Args:
        gate_up: (..., 2f), gate then up, float.
        approximate: GELU by its tanh formula, not by the error function.

    Returns:
        (..., f), the same dtype.

    Source:
        arXiv 2002.05202, equation 6, without its matrices.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate, approximate="tanh" if approximate else "none") * up
