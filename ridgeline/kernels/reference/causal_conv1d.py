"""The short causal convolution before linear attention and Mamba, in torch, which is a kernel wherever torch runs.

Legend: ``b`` = batch, ``s`` = sequence, ``c`` = channels, ``w`` = width.
"""

import torch
from torch import Tensor


def causal_conv1d(x_bsc: Tensor, weight_cw: Tensor, bias_c: Tensor | None = None) -> Tensor:
    """Weigh each channel's last ``w`` positions, then SiLU.

    Args:
        x_bsc: (b, s, c), float.
        weight_cw: (c, w), the same dtype; the last column is the position's own.
        bias_c: (c,); None for none.

    Returns:
        (b, s, c), the same dtype.
    """
    width = weight_cw.shape[1]
    padded_bcs = torch.nn.functional.pad(x_bsc.transpose(1, 2), (width - 1, 0))
    out_bcs = torch.nn.functional.conv1d(padded_bcs, weight_cw.unsqueeze(1), bias_c, groups=len(weight_cw))
    return torch.nn.functional.silu(out_bcs).transpose(1, 2)
