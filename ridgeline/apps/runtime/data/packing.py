"""Samples as the tensors of a microbatch; with ``eod_reset`` the documents packed into a sample are kept apart.

    tokens        7  8  E  9  E  4      E = end of document
    positions     0  1  2  0  1  0      restart after each E
    loss mask     1  1  0  1  0  1      nothing is learnt from E about what follows it
    boundaries    0        3     5  6   attention stays between two of them

Shapes: b = samples of the microbatch, s = sequence length.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import attrs
import torch
from torch import Tensor

from ridgeline.core.errors import DataError

Packing: TypeAlias = Literal["none", "eod_reset"]


@attrs.frozen(kw_only=True, eq=False)
class Microbatch:
    """What one dp rank computes at once.

    Attributes:
        tokens: (b, s), int64.
        labels: (b, s), int64: the token that follows each.
        loss_mask: (b, s), float32: 1 where the prediction counts.
        position_ids: (b, s), int64.
        cu_seqlens: (documents + 1,), int32: where the documents of ``tokens.flatten()`` begin, then b * s; no document
            crosses the end of a sample. None: each sample attends to itself as a whole.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None


def document_boundaries(tokens: Tensor, eod: int) -> Tensor:
    """Where each document of a row of tokens begins, then the number of tokens: ``(documents + 1,), int32``.

    Args:
        tokens: (s,) or (b, s); the rows of the latter are laid end to end and never share a document.
        eod: Id that ends a document and belongs to it.

    Example:
        >>> document_boundaries(torch.tensor([7, 8, 0, 9, 0, 4]), eod=0).tolist()
        [0, 3, 5, 6]
    """
    ends = tokens == eod
    ends[..., -1] = True
    marks = torch.nonzero(ends.flatten()).flatten() + 1
    return torch.cat([marks.new_zeros(1), marks]).to(torch.int32)


def restarted_positions(tokens: Tensor, eod: int) -> Tensor:
    """Position of each token within its document, int64, shaped like ``tokens``.

    Example:
        >>> restarted_positions(torch.tensor([7, 8, 0, 9, 0, 4]), eod=0).tolist()
        [0, 1, 2, 0, 1, 0]
    """
    index = torch.arange(tokens.shape[-1], device=tokens.device).expand_as(tokens)
    begins = torch.zeros_like(tokens)
    begins[..., 1:] = torch.where(tokens[..., :-1] == eod, index[..., 1:], 0)
    return index - begins.cummax(dim=-1).values


def assemble(
    samples: Sequence[Mapping[str, Tensor]], *, packing: Packing, eod: int, vocab_size: int | None = None
) -> Microbatch:
    """Stack samples of a ``GPTDataset`` into a microbatch.

    Args:
        samples: b samples with ``tokens``, ``labels`` and ``loss_mask``, each (s,).
        packing: Whether documents are kept apart.
        eod: Id that ends a document.
        vocab_size: Ids the model has an embedding for; None checks nothing.

    Raises:
        DataError: An id is not below ``vocab_size``.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/core/datasets/gpt_dataset.py, ``_get_ltor_masks_and_position_ids``
        with ``reset_position_ids``, ``reset_attention_mask`` and ``eod_mask_loss``; boundaries for the dense mask.
    """
    tokens, labels, loss_mask = (
        torch.stack([sample[name] for sample in samples]) for name in ("tokens", "labels", "loss_mask")
    )
    if vocab_size is not None and (highest := int(torch.maximum(tokens.max(), labels.max()))) >= vocab_size:
        raise DataError(
            f"the data holds the token id {highest}, but model.vocab_size={vocab_size} has ids below "
            f"{vocab_size} only; prepare the data with the model's own tokenizer"
        )
    if packing == "none":
        positions = torch.arange(tokens.shape[-1]).expand_as(tokens).contiguous()
        return Microbatch(tokens=tokens, labels=labels, loss_mask=loss_mask, position_ids=positions, cu_seqlens=None)
    return Microbatch(
        tokens=tokens,
        labels=labels,
        loss_mask=loss_mask.masked_fill(tokens == eod, 0.0),
        position_ids=restarted_positions(tokens, eod),
        cu_seqlens=document_boundaries(tokens, eod),
    )
