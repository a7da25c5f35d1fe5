"""Layers that hand on what others share: keys and values, or a choice of positions."""

from typing import Any

import attrs
import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from ridgeline.models.runtime.sequences import Handed, Sequences


class HandingLayer(TransformerLayer):
    """A layer that takes what is shared where Megatron-core hands it a context, and gives it on there."""

    def forward(
        self, *args: Any, packed_seq_params: Sequences, context: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream, and what the next layer may share, as `Handed` has it.

        Args:
            args, kwargs: Of Megatron-core's layer.
            packed_seq_params: The microbatch.
            context: What a layer below handed on.
        """
        handed = Handed(context)
        own = attrs.evolve(packed_seq_params, handed=handed)
        hidden, _ = super().forward(*args, packed_seq_params=own, **kwargs)
        return hidden, handed.shared  # pyright: ignore[reportReturnType]  a tensor wherever no graph is captured
