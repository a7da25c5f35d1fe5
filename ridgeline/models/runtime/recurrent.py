"""What mixers with a memory share: a convolution that goes on from earlier tokens, and documents read apart.

Legend: ``s`` = sequence, ``b`` = microbatch, ``c`` = channels of the convolution, ``w`` = its width.
"""

from collections.abc import Callable

import torch

from ridgeline.kernels.documents import document_lengths
from ridgeline.models.runtime.kernels import Kernel
from ridgeline.models.runtime.sequences import Sequences


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


def each_document(mix: Callable[..., torch.Tensor], *parts_bs: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """``mix`` over samples that are one document each, or over every document apart, so that none knows of another.

    Args:
        mix: Of tensors (b, s, ...), one document a sample; gives one alike.
        parts_bs: What it reads.
        sequences: Where documents end.
    """
    if sequences.cu_seqlens is None:
        return mix(*parts_bs)
    b, s = parts_bs[0].shape[:2]
    lengths = document_lengths(sequences.cu_seqlens.tolist(), size=s, samples=b)
    documents = zip(*(x.flatten(0, 1).unsqueeze(0).split(lengths, dim=1) for x in parts_bs), strict=True)
    return torch.cat([mix(*parts) for parts in documents], dim=1)[0].unflatten(0, (b, s))
