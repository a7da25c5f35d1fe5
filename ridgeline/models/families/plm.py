"""PLM: latent attention and squared ReLU in a dense model (arXiv 2503.12167)."""

from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.model import Block, LatentAttention, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import decoder_of, first_feed_forward, first_mixer
from ridgeline.models.families.latent import LATENT_FIELDS, LATENT_WEIGHTS, latent_config, latent_of
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_template import direct

FIELDS = (
    *(field for field in LATENT_FIELDS if field.name not in ("hidden_act", "tie_word_embeddings")),
    Field("intermediate_size", int),
    Field("hidden_act", str, only=("relu2",)),
    Field("tie_word_embeddings", bool),
    Field("rope_interleave", bool, True),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = latent_of(hf, attrs.evolve(rope, interleaved=hf["rope_interleave"]))
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"], activation="squared_relu"))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    return {
        **latent_config(spec),
        "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "hidden_act": "relu2",
        "rope_interleave": first_mixer(spec, LatentAttention).rope.interleaved,
    }


PLM = Family(
    name="plm",
    architectures=("PLMForCausalLM",),
    fields=FIELDS,
    rope_base=100000.0,
    mixers=(LatentAttention,),
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {**LATENT_WEIGHTS, "mlp.linear_fc1.weight": direct("model.layers.{layer}.mlp.up_proj.weight")}
    ),
)
