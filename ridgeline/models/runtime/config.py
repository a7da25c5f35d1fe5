"""Megatron-core's config, and what of a job only modules of ours read."""

import dataclasses

from megatron.core.transformer.transformer_config import TransformerConfig


@dataclasses.dataclass
class LayerConfig(TransformerConfig):
    """What all modules of a chunk are built from.

    Attributes:
        moe_dispatcher: How tokens reach their experts; upstream knows two ways of the three.
        moe_overlap: What runs while they are on their way.
    """

    moe_dispatcher: str = "alltoall"
    moe_overlap: tuple[str, ...] = ()
