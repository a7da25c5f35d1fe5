"""How modules hold the kernels that a plan chose."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

Kernel: TypeAlias = Callable[..., torch.Tensor]
Kernels: TypeAlias = Mapping[str, Kernel]
"""By op."""
