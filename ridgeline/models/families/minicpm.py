"""MiniCPM, dense and with experts: Llama or Mixtral with scaled embeddings, layers and logits."""

from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_feed_forward,
    moe_weights,
)
from ridgeline.models.families.scaled import SCALE_FIELDS, scales_config, scales_of
from ridgeline.models.family import Family, Field, Values, require

_OWN = ("tie_word_embeddings", "initializer_range")
FIELDS = (
    *(field for field in DECODER_FIELDS if field.name not in _OWN),
    *SCALE_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int | None, None),
    Field("tie_word_embeddings", bool),
    Field("initializer_range", float, minimum=0),
    Field("attention_bias", bool, False, only=(False,)),
    Field("num_experts", int, 0, minimum=0),
    Field("num_experts_per_tok", int | None, None, minimum=0),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of({**hf, "head_dim": None}, rope)
    block = Block(mixer=attention, feed_forward=_feed_forward(hf))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"], **scales_of(hf))


def _feed_forward(hf: Values) -> Mlp | Moe:
    experts, topk, width = hf["num_experts"], hf["num_experts_per_tok"], hf["intermediate_size"]
    if not experts:
        return Mlp(ffn_hidden=width)
    require(topk is not None, "num_experts_per_tok", topk, f"the config must give it beside num_experts={experts}")
    return Moe(experts=experts, topk=topk, ffn_hidden=width)


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    shell = {name: value for name, value in decoder_config(spec).items() if name != "head_dim"}
    config = {**shell, **scales_config(spec)}
    if not spec.moes:
        return {**config, "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden}
    moe = first_feed_forward(spec, Moe)
    sizes = {"intermediate_size": moe.ffn_hidden, "num_experts": moe.experts, "num_experts_per_tok": moe.topk}
    return {**config, **sizes}


MINICPM = Family(
    name="minicpm",
    architectures=("MiniCPMForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp, Moe),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=moe_weights(
        router="mlp.gate.weight",
        gate="mlp.experts.{expert}.w1.weight",
        up="mlp.experts.{expert}.w3.weight",
        down="mlp.experts.{expert}.w2.weight",
    ),
)
