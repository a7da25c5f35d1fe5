"""The model graph: a vocabulary, a run-length list of blocks, a final norm and a head."""

from ridgeline.core.model.feed_forwards import Activation, FeedForward, Mlp, Moe, is_gated
from ridgeline.core.model.graph import Block, ModelSpec, Norm, Repeat
from ridgeline.core.model.mixers import Attention, GatedDeltaNet, Indexer, LatentAttention, Mamba2, Mixer
from ridgeline.core.model.rope import DynamicRope, LinearRope, Llama3Rope, LongRope, Rope, RopeScaling, YarnRope

__all__ = [
    "Activation",
    "Attention",
    "Block",
    "DynamicRope",
    "FeedForward",
    "GatedDeltaNet",
    "Indexer",
    "LatentAttention",
    "LinearRope",
    "Llama3Rope",
    "LongRope",
    "Mamba2",
    "Mixer",
    "Mlp",
    "ModelSpec",
    "Moe",
    "Norm",
    "Repeat",
    "Rope",
    "RopeScaling",
    "YarnRope",
    "is_gated",
]
