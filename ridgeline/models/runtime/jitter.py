"""Noise on the tokens that experts train with.

Source:
    Switch Transformers, arXiv 2101.03961, section 2.2 (on the router's input alone); Phi-3.5-MoE has it on that of the
    experts too: huggingface/transformers 5.23, ``PhimoeSparseMoeBlock``, which draws it twice.
"""

from typing import Any

import torch

from ridgeline.models.runtime.experts import ExpertLayer


class JitteredExpertLayer(ExpertLayer):
    """Experts that train on tokens times uniform noise from ``1 - jitter`` to ``1 + jitter``."""

    def __init__(self, *args: Any, jitter: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.jitter = jitter

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            hidden_states = hidden_states * torch.empty_like(hidden_states).uniform_(1 - self.jitter, 1 + self.jitter)
        return super().forward(hidden_states, *args, **kwargs)
