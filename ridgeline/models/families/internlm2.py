"""InternLM2 and 2.5: Llama under other names; queries, keys and values published as Megatron-core holds them."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_attention,
    first_feed_forward,
)
from ridgeline.models.family import Family, Field, Values
from ridgeline.models.hf_template import direct, gate_up

FIELDS = (
    *DECODER_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int | None, None),
    Field("bias", bool),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = attention_of({**hf, "head_dim": None}, rope, qkv_bias=hf["bias"], out_bias=hf["bias"])
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]))
    return decoder_of(hf, (block,) * hf["num_hidden_layers"])


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    return {
        **{name: value for name, value in decoder_config(spec).items() if name != "head_dim"},
        "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "bias": first_attention(spec).qkv_bias,
    }


_LAYER = "model.layers.{layer}."
_FEED_FORWARD = _LAYER + "feed_forward."
INTERNLM2 = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            "embedding.word_embeddings.weight": direct("model.tok_embeddings.weight"),
            "input_layernorm.weight": direct(_LAYER + "attention_norm.weight"),
            "self_attention.linear_qkv.weight": direct(_LAYER + "attention.wqkv.weight"),
            "self_attention.linear_qkv.bias": direct(_LAYER + "attention.wqkv.bias"),
            "self_attention.linear_proj.weight": direct(_LAYER + "attention.wo.weight"),
            "self_attention.linear_proj.bias": direct(_LAYER + "attention.wo.bias"),
            "pre_mlp_layernorm.weight": direct(_LAYER + "ffn_norm.weight"),
            "mlp.linear_fc1.weight": gate_up(_FEED_FORWARD + "w1.weight", _FEED_FORWARD + "w3.weight"),
            "mlp.linear_fc2.weight": direct(_FEED_FORWARD + "w2.weight"),
            "decoder.final_layernorm.weight": direct("model.norm.weight"),
            "output_layer.weight": direct("output.weight"),
        }
    ),
)
