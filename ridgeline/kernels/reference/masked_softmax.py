"""Scaled masked softmax in plain torch.

Legend: ``b`` = batch, ``n`` = heads, ``s`` = queries, ``t`` = keys.
"""

from torch import Tensor

HIDDEN_SCORE = -10000.0
"""What a hidden score becomes; its weight is then zero in any dtype, unless a whole row is hidden."""


def masked_softmax(scores_bnst: Tensor, hidden: Tensor, *, scale: float) -> Tensor:
    """Softmax over the last dim of what is not hidden, computed in fp32 or wider.

    Args:
        scores_bnst: (b, n, s, t), float.
        hidden: bool, broadcasts to the scores; no row is hidden whole.
        scale: Multiplies the scores before.

    Returns:
        (b, n, s, t), the dtype of the scores.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, ``FusedScaleMaskSoftmax.forward_torch_softmax``.
    """
    wide = scores_bnst.double() if scores_bnst.dtype.itemsize == 8 else scores_bnst.float()
    return (wide * scale).masked_fill(hidden, HIDDEN_SCORE).softmax(-1).to(scores_bnst.dtype)
