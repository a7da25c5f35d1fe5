"""Qwen, the first: one biased projection for queries, keys and values, a published width for gate and up together.

When it generates beyond ``seq_length``, its class stretches positions and sharpens attention (``use_dynamic_ntk``,
``use_logn_attn``). A sequence ends there here, so that neither is met.
"""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat, Rope
from ridgeline.models.families.decoder import first_attention, first_feed_forward
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct, gate_up, packed_qkv

FIELDS = (
    Field("vocab_size", int),
    Field("hidden_size", int),
    Field("intermediate_size", int),
    Field("num_hidden_layers", int),
    Field("num_attention_heads", int),
    Field("kv_channels", int),
    Field("seq_length", int),
    Field("layer_norm_epsilon", float, minimum=0),
    Field("rotary_emb_base", float, 10000.0, minimum=0),
    Field("rotary_pct", float, 1.0, only=(1.0,)),
    Field("tie_word_embeddings", bool, False, only=(False,)),
    Field("initializer_range", float, 0.02, minimum=0),
    Field("no_bias", bool, True, only=(True,)),
    Field("scale_attn_weights", bool, True, only=(True,)),
    Field("attn_dropout_prob", float, 0.0, only=(0.0,)),
    Field("emb_dropout_prob", float, 0.0, only=(0.0,)),
    Field("use_dynamic_ntk", bool, True),
    Field("use_logn_attn", bool, True),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    heads, both = hf["num_attention_heads"], hf["intermediate_size"]
    require(both % 2 == 0, "intermediate_size", both, "must be even, the width of gate and up together")
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": hf["kv_channels"]}
    attention = Attention(**sizes, qkv_bias=True, rope=Rope(base=hf["rotary_emb_base"]))
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=both // 2))
    return ModelSpec(
        vocab_size=hf["vocab_size"],
        hidden=hf["hidden_size"],
        max_position=hf["seq_length"],
        blocks=(Repeat(block=block, count=hf["num_hidden_layers"]),),
        norm_eps=hf["layer_norm_epsilon"],
        init_std=hf["initializer_range"],
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    fixed = {field.name: field.only[0] for field in FIELDS if field.only}
    return {
        **fixed,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "intermediate_size": 2 * first_feed_forward(spec, Mlp).ffn_hidden,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.heads,
        "kv_channels": attention.head_dim,
        "seq_length": spec.max_position,
        "layer_norm_epsilon": spec.norm_eps,
        "rotary_emb_base": attention.rope.base,
        "initializer_range": spec.init_std,
    }


_LAYER = "transformer.h.{layer}."
QWEN = Family(
    name="qwen",
    architectures=("QWenLMHeadModel",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            "embedding.word_embeddings.weight": direct("transformer.wte.weight"),
            "input_layernorm.weight": direct(_LAYER + "ln_1.weight"),
            "self_attention.linear_qkv.weight": packed_qkv(_LAYER + "attn.c_attn.weight"),
            "self_attention.linear_qkv.bias": packed_qkv(_LAYER + "attn.c_attn.bias"),
            "self_attention.linear_proj.weight": direct(_LAYER + "attn.c_proj.weight"),
            "pre_mlp_layernorm.weight": direct(_LAYER + "ln_2.weight"),
            "mlp.linear_fc1.weight": gate_up(_LAYER + "mlp.w2.weight", _LAYER + "mlp.w1.weight"),
            "mlp.linear_fc2.weight": direct(_LAYER + "mlp.c_proj.weight"),
            "decoder.final_layernorm.weight": direct("transformer.ln_f.weight"),
            "output_layer.weight": direct("lm_head.weight"),
        }
    ),
)
