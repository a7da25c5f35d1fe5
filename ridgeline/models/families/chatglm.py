"""ChatGLM3 and the first GLM-4: half of each head turns in pairs, fused projections, names like Megatron's.

``rope_ratio`` multiplies the base of the positions, as the code beside ChatGLM3-6B-32K and GLM-4-9B reads it.
"""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat, Rope
from ridgeline.models.families.decoder import first_attention, first_feed_forward
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct, packed_qkv

BASE = 10000.0
FIELDS = (
    Field("padded_vocab_size", int),
    Field("hidden_size", int),
    Field("ffn_hidden_size", int),
    Field("num_layers", int),
    Field("num_attention_heads", int),
    Field("kv_channels", int),
    Field("multi_query_attention", bool, only=(True,)),
    Field("multi_query_group_num", int),
    Field("seq_length", int),
    Field("layernorm_epsilon", float, minimum=0),
    Field("rope_ratio", float, 1.0, minimum=0),
    Field("tie_word_embeddings", bool, False),
    Field("initializer_range", float, 0.02, minimum=0),
    Field("add_qkv_bias", bool, False),
    Field("add_bias_linear", bool, False, only=(False,)),
    Field("apply_residual_connection_post_layernorm", bool, False, only=(False,)),
    Field("original_rope", bool, True, only=(True,)),
    Field("post_layer_norm", bool, True, only=(True,)),
    Field("rmsnorm", bool, True, only=(True,)),
    Field("attention_dropout", float, 0.0, only=(0.0,)),
    Field("hidden_dropout", float, 0.0, only=(0.0,)),
    Field("pre_seq_len", int | None, None, only=(None,)),
    Field("quantization_bit", int, 0, only=(0,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    heads, groups = hf["num_attention_heads"], hf["multi_query_group_num"]
    require(heads % groups == 0, "multi_query_group_num", groups, f"must divide num_attention_heads={heads}")
    attention = Attention(
        heads=heads,
        kv_heads=groups,
        head_dim=hf["kv_channels"],
        qkv_bias=hf["add_qkv_bias"],
        rope=Rope(base=BASE * hf["rope_ratio"], share=0.5, interleaved=True),
    )
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=hf["ffn_hidden_size"]))
    return ModelSpec(
        vocab_size=hf["padded_vocab_size"],
        hidden=hf["hidden_size"],
        max_position=hf["seq_length"],
        blocks=(Repeat(block=block, count=hf["num_layers"]),),
        norm_eps=hf["layernorm_epsilon"],
        tied_embeddings=hf["tie_word_embeddings"],
        init_std=hf["initializer_range"],
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    fixed = {field.name: field.only[0] for field in FIELDS if field.only and field.only[0] is not None}
    return {
        **fixed,
        "padded_vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "num_layers": spec.num_layers,
        "num_attention_heads": attention.heads,
        "kv_channels": attention.head_dim,
        "multi_query_group_num": attention.kv_heads,
        "seq_length": spec.max_position,
        "layernorm_epsilon": spec.norm_eps,
        "rope_ratio": attention.rope.base / BASE,
        "tie_word_embeddings": spec.tied_embeddings,
        "initializer_range": spec.init_std,
        "add_qkv_bias": attention.qkv_bias,
    }


_LAYER = "transformer.encoder.layers.{layer}."
_QKV = _LAYER + "self_attention.query_key_value."
CHATGLM = Family(
    name="chatglm",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            "embedding.word_embeddings.weight": direct("transformer.embedding.word_embeddings.weight"),
            "input_layernorm.weight": direct(_LAYER + "input_layernorm.weight"),
            "self_attention.linear_qkv.weight": packed_qkv(_QKV + "weight"),
            "self_attention.linear_qkv.bias": packed_qkv(_QKV + "bias"),
            "self_attention.linear_proj.weight": direct(_LAYER + "self_attention.dense.weight"),
            "pre_mlp_layernorm.weight": direct(_LAYER + "post_attention_layernorm.weight"),
            "mlp.linear_fc1.weight": direct(_LAYER + "mlp.dense_h_to_4h.weight"),
            "mlp.linear_fc2.weight": direct(_LAYER + "mlp.dense_4h_to_h.weight"),
            "decoder.final_layernorm.weight": direct("transformer.encoder.final_layernorm.weight"),
            "output_layer.weight": direct("transformer.output_layer.weight"),
        }
    ),
)
