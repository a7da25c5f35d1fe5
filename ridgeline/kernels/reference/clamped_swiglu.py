"""The clamped SwiGLU of gpt-oss in plain torch."""

from torch import Tensor


def clamped_swiglu(gate_up: Tensor, *, limit: float = 7.0, alpha: float = 1.702, interleaved: bool = True) -> Tensor:
    """Gate one half of the last dim, plus one, by the other, both bounded.

    ``gate * sigmoid(alpha * gate) * (up + 1)`` with ``gate <= limit`` and ``-limit <= up <= limit``.

    Args:
        gate_up: (..., 2f), float.
        limit: > 0.
        alpha: > 0.
        interleaved: Gate and up stand in turn, not gate before up.

    Returns:
        (..., f), the same dtype.

    Source:
        huggingface/transformers 5.23, ``GptOssExperts``.
    """
    gate, up = (gate_up[..., ::2], gate_up[..., 1::2]) if interleaved else gate_up.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * (alpha * gate).sigmoid() * (up + 1)
