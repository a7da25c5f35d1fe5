"""Mixtral: experts in every layer, the weights of the chosen ones normalised; one window for all layers, or none."""

from typing import Any

from ridgeline.core.model import Block, ModelSpec, Moe, Rope
from ridgeline.models.families.block_sparse import BLOCK_SPARSE_WEIGHTS, EXPERT_FIELDS, experts_config, experts_of
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values

FIELDS = (
    *DECODER_FIELDS,
    *EXPERT_FIELDS,
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("sliding_window", int | None, None),
    Field("router_jitter_noise", float, 0.0, only=(0.0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    block = Block(mixer=attention_of(hf, rope, window=hf["sliding_window"]), feed_forward=experts_of(hf))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    return {
        **decoder_config(spec),
        **experts_config(first_feed_forward(spec, Moe)),
        "sliding_window": first_attention(spec).window,
    }


MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    fields=FIELDS,
    rope_base=1000000.0,
    feed_forwards=(Moe,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=BLOCK_SPARSE_WEIGHTS,
)
