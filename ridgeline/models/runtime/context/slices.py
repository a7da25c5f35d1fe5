"""This rank's positions of tensors that hold whole samples."""

import torch

from ridgeline.parallel.context import Pieces


def own_positions(x_bs: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    """Of (b, s, ...) the positions that this rank computes, in order; all where there is nothing to split."""
    if not pieces:
        return x_bs
    return torch.cat([x_bs[:, begin:end] for begin, end in pieces], dim=1)
