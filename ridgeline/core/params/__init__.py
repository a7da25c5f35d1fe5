"""The canonical parameter table: every tensor of a model, by name, shape and role.

Names are Megatron-core's, with the layer counted over the whole model and experts over the whole layer. Fused tensors
keep Megatron's layout: ``linear_qkv`` holds, for each key-value head, its query heads (then their gates), the key and
the value; ``linear_fc1`` holds gate, then up.
"""

from ridgeline.core.params.adapters import is_target, linear_of, target_of, with_adapters
from ridgeline.core.params.model import (
    block_params,
    fqn_of,
    model_params,
    mtp_params,
    num_active_params,
    num_params,
    outer_params,
)
from ridgeline.core.params.table import Param, Place, Role

__all__ = [
    "Param",
    "Place",
    "Role",
    "block_params",
    "fqn_of",
    "is_target",
    "linear_of",
    "model_params",
    "mtp_params",
    "num_active_params",
    "num_params",
    "outer_params",
    "target_of",
    "with_adapters",
]
