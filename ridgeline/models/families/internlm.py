"""InternLM: Llama with one switch for the biases of attention, and a table of its own for rotary positions."""

from typing import Any

from ridgeline.core.model import Block, DynamicRope, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values, require

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("bias", bool),
    Field("rotary", dict | None, None),
    Field("rope_theta", float | None, None, only=(None,)),  # its class reads ``rotary`` alone
    Field("rope_scaling", dict | None, None, only=(None,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    everyone = {"num_key_value_heads": None, "head_dim": None}
    attention = attention_of({**hf, **everyone}, _rope_of(hf), qkv_bias=hf["bias"], out_bias=hf["bias"])
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _rope_of(hf: Values) -> Rope:
    table = hf["rotary"] or {}
    kind, base = table.get("type", "origin"), table.get("base", 10000)
    require(kind in ("origin", "dynamic"), "rotary.type", kind, "is not modelled", "known: 'origin', 'dynamic'")
    require(type(base) in (int, float), "rotary.base", base, "must be a number")
    if kind == "origin":
        return Rope(base=base)
    longest = hf["max_position_embeddings"]
    return Rope(base=base, scaling=DynamicRope(factor=table.get("scaling_factor", 1.0), original_max_position=longest))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    scaling = attention.rope.scaling
    dynamic = {"scaling_factor": scaling.factor} if isinstance(scaling, DynamicRope) else {}
    others = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling")
    return {
        **{name: value for name, value in decoder_config(spec).items() if name not in others},
        "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "bias": attention.qkv_bias,
        "rotary": {"type": "dynamic" if dynamic else "origin", "base": attention.rope.base, **dynamic},
    }


INTERNLM = Family(
    name="internlm",
    architectures=("InternLMForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
