"""Weights, wherever they are stored, as one function that reads a box of a parameter."""

from collections.abc import Callable
from typing import TypeAlias

import torch

from ridgeline.checkpoint.boxes import Box

Weights: TypeAlias = Callable[[str, Box, torch.Tensor], None]
"""Reads a box of the parameter of this full name into memory of the box's shape, converting to its dtype and device."""
