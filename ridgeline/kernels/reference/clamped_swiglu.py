"""The clamped SwiGLU of gpt-oss in plain torch."""

from torch import Tensor


def clamped_swiglu(gate_up: Tensor, *, limit: float = 7.0, alpha: float = 1.702) -> Tensor:
    """Gate what stands at odd places of the last dim, plus one, by what stands at even places, both bounded.

    ``gate * sigmoid(alpha * gate) * (up + 1)`` with ``gate <= limit`` and ``-limit <= up <= limit``.

    Args:
        gate_up: (..., 2f), gate and up in turn, float.
        limit: > 0.
        alpha: > 0.

    Returns:
        (..., f), the same dtype.

    Source:
        huggingface/transformers 5.23, ``GptOssExperts``.
    """
    gate = gate_up[..., ::2].clamp(max=limit)
    up = gate_up[..., 1::2].clamp(-limit, limit)
    return gate * (alpha * gate).sigmoid() * (up + 1)
