"""The bounded SwiGLU of Step-3.5-Flash in plain torch."""

from torch import Tensor
from torch.nn import functional


def bounded_swiglu(gate_up: Tensor, *, limit: float) -> Tensor:
    """Gate one half of the last dim by the other, both bounded: ``min(silu(gate), limit) * clip(up, -limit, limit)``.

    Args:
        gate_up: (..., 2f), gate then up, float.
        limit: > 0.

    Returns:
        (..., f), the same dtype.

    Source:
        huggingface/transformers 5.23, ``Step3p7Experts``; what bounds gpt-oss's gate bounds it before its SiLU.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)
