"""MiniCPM3: latent attention in a dense model, LongRoPE, scaled embeddings, layers and logits."""

from typing import Any

from ridgeline.core.model import Block, LatentAttention, LongRope, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import decoder_of, first_feed_forward, first_mixer
from ridgeline.models.families.latent import LATENT_FIELDS, LATENT_WEIGHTS, latent_config, latent_of
from ridgeline.models.families.scaled import SCALE_FIELDS, scales_config, scales_of
from ridgeline.models.family import Family, Field, Values, require

_OWN = ("v_head_dim", "tie_word_embeddings", "initializer_range")
FIELDS = (
    *(field for field in LATENT_FIELDS if field.name not in _OWN),
    *SCALE_FIELDS,
    Field("intermediate_size", int),
    Field("v_head_dim", int | None, None),
    Field("tie_word_embeddings", bool, True),
    Field("initializer_range", float, 0.1, minimum=0),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    hidden, heads = hf["hidden_size"], hf["num_attention_heads"]
    require(hidden % heads == 0, "hidden_size", hidden, f"must be a multiple of num_attention_heads={heads}")
    attention = latent_of({**hf, "v_head_dim": hf["v_head_dim"] or hidden // heads}, rope)
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"], **scales_of(hf))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    ffn, scaling = first_feed_forward(spec, Mlp).ffn_hidden, first_mixer(spec, LatentAttention).rope.scaling
    config = {**latent_config(spec), **scales_config(spec), "intermediate_size": ffn, "mlp_bias": False}
    if isinstance(scaling, LongRope):  # its class in transformers 5.20 does not work without the factor
        config["rope_scaling"] |= {"factor": spec.max_position / scaling.original_max_position}
    return config


MINICPM3 = Family(
    name="minicpm3",
    architectures=("MiniCPM3ForCausalLM",),
    fields=FIELDS,
    mixers=(LatentAttention,),
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=LATENT_WEIGHTS,
)
