"""A row of the parameter table."""

import math
from typing import Literal, TypeAlias

from ridgeline.core.frozen import frozen

Role: TypeAlias = Literal[
    "embedding", "head", "head_bias", "positions", "norm", "norm_bias", "head_norm", "router", "router_bias",
    "qkv", "qkv_bias", "out", "out_bias",
    "gate_up", "gate_up_bias", "up", "up_bias", "down", "down_bias",
    "column", "fused", "conv", "conv_bias", "per_head", "replicated", "expert_bias",
]  # fmt: skip
"""What a tensor does, which decides how it is split (``ridgeline.parallel.shards``) and whether it decays.

``column``: a matrix with rows for each head. ``fused``: one of unequal parts, each with rows for each head.
``per_head``: a number or a few for each head. ``replicated``: a matrix that every rank keeps whole. ``expert_bias``:
moved by load instead of a gradient, so without gradient or optimizer state.
"""

Place: TypeAlias = Literal["layer", "first", "last", "both"]
"""Where a parameter lies: in its layer, or on the first stage, the last one, or (a shared embedding) both."""


@frozen
class Param:
    """One tensor of the unsharded model.

    Attributes:
        name: Within its layer (``mlp.linear_fc1.weight``) or the model; an expert's holds ``{expert}``.
        shape: Global shape, in elements.
        role: What it does, which decides how it is sharded and whether it decays.
        experts: How many equal tensors this row stands for, one an expert; 0 for a tensor that is no expert's.
        parts: Rows of each part of a tensor whose parts are split one by one; () where it is split as one.
        place: Where it lies.
        frozen: It stays what it is at first, since adapters train beside it.
        low_rank: Which of an adapter's two matrices it is, if any.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    experts: int = 0
    parts: tuple[int, ...] = ()
    place: Place = "layer"
    frozen: bool = False
    low_rank: Literal["", "a", "b"] = ""

    @property
    def elements(self) -> int:
        """Elements of all the tensors of this row."""
        return math.prod(self.shape) * max(1, self.experts)

    @property
    def trains(self) -> bool:
        """Whether it has a gradient."""
        return self.role != "expert_bias" and not self.frozen
