"""Cross entropy of each token on torch_npu.

Legend: ``t`` = tokens, ``v`` = vocabulary.
"""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless

MAX_TOKENS = 200_000


def cross_entropy(logits_tv: Tensor, targets_t: Tensor) -> Tensor:
    """As `ridgeline.kernels.reference.cross_entropy.cross_entropy`; up to 200,000 tokens."""
    tokens = len(logits_tv)
    rule = f"must be <= {MAX_TOKENS}"
    refuse_unless(tokens <= MAX_TOKENS, "cross_entropy", "tokens", tokens, rule, "use linear_cross_entropy, by chunks")
    refuse_dtypes("cross_entropy", logits_tv=logits_tv)
    refuse_dtypes("cross_entropy", allowed=(torch.int64,), targets_t=targets_t)
    refuse_shape("cross_entropy", "targets_t", targets_t, (tokens,))
    # The loss has the dtype of the logits, and under autograd only the reduction may be other than its default.
    return torch.ops.npu.npu_cross_entropy_loss(logits_tv.float(), targets_t, reduction="none")[0]
