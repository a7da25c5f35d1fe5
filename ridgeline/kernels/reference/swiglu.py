"""The gated activation SwiGLU in plain torch."""

import torch


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Gate one half of the last dim by the other: ``silu(gate) * up``.

    Args:
        gate_up: (..., 2f), gate then up, float.

    Returns:
        (..., f), the same dtype.

    Source:
        arXiv 2002.05202, equation 6, without its matrices.

    Example:
        >>> swiglu(torch.tensor([0.0, 1.0, 5.0, 2.0]))
        tensor([0.0000, 1.4621])
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
