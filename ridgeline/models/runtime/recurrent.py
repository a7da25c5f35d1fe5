"""What mixers with a memory share: a convolution that goes on from earlier tokens.

Legend: ``s`` = sequence, ``b`` = microbatch, ``c`` = channels of the convolution, ``w`` = its width.
"""

import torch

from ridgeline.models.runtime.kernels import Kernel


class Convolution(torch.nn.Module):
    """The weight of a short causal convolution over this rank's channels, and its bias if there is one."""

    def __init__(
        self, channels: int, width: int, *, dtype: torch.dtype, causal_conv1d: Kernel, bias: bool = False
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(channels, 1, width, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(channels, dtype=dtype)) if bias else None
        self.causal_conv1d = causal_conv1d

    def forward(self, inputs_bsc: torch.Tensor, earlier_bwc: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The output (b, s, c), and the inputs that the next token's needs, (b, w-1, c)."""
        joined = inputs_bsc if earlier_bwc is None else torch.cat((earlier_bwc, inputs_bsc), dim=1)
        options = () if self.bias is None else (self.bias,)
        output = self.causal_conv1d(joined, self.weight.squeeze(1), *options)
        begin = max(0, joined.shape[1] + 1 - self.weight.shape[2])
        return output[:, joined.shape[1] - inputs_bsc.shape[1] :], joined[:, begin:]
