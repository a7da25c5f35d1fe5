"""Megatron-core's config, and what of a job only modules of ours read."""

import dataclasses

from megatron.core.transformer.transformer_config import TransformerConfig


@dataclasses.dataclass
class LayerConfig(TransformerConfig):
    """What all modules of a chunk are built from.

    Attributes:
        moe_dispatcher: How tokens reach their experts; upstream knows two ways of the three.
        moe_overlap: What runs while they are on their way.
        cp_algorithm: How attention sees the positions of other cp ranks.
        repeat_kv: Keys and values are repeated for all heads before heads change places.
    """

    moe_dispatcher: str = "alltoall"
    moe_overlap: tuple[str, ...] = ()
    cp_algorithm: str = "ring"
    repeat_kv: bool = False
