"""Bloom: ALiBi, LayerNorms and biases everywhere, a norm on the embedding, GELU over four times the hidden size."""

from itertools import groupby
from types import MappingProxyType
from typing import Any

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat, Rope
from ridgeline.models.families.decoder import first_attention
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct

FIELDS = (
    Field("vocab_size", int),
    Field("hidden_size", int, alias="n_embed"),
    Field("n_layer", int, alias="num_hidden_layers"),
    Field("n_head", int, alias="num_attention_heads"),
    Field("seq_length", int, 2048),  # what it was trained on; positions have no limit of their own
    Field("layer_norm_epsilon", float, 1e-5, minimum=0),
    Field("initializer_range", float, 0.02, minimum=0),
    Field("apply_residual_connection_post_layernorm", bool, False, only=(False,)),
    Field("hidden_dropout", float, 0.0, only=(0.0,)),
    Field("attention_dropout", float, 0.0, only=(0.0,)),
    Field("slow_but_exact", bool, False),
    Field("tie_word_embeddings", bool, True),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    hidden, heads = hf["hidden_size"], hf["n_head"]
    require(hidden % heads == 0, "hidden_size", hidden, f"must be a multiple of n_head={heads}")
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": hidden // heads}
    attention = Attention(**sizes, qkv_bias=True, out_bias=True, positions="alibi")
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=4 * hidden, activation="gelu_tanh", bias=True))
    return ModelSpec(
        vocab_size=hf["vocab_size"],
        hidden=hidden,
        max_position=hf["seq_length"],
        blocks=(Repeat(block=block, count=hf["n_layer"]),),
        norm="layer",
        norm_eps=hf["layer_norm_epsilon"],
        tied_embeddings=hf["tie_word_embeddings"],
        embedding_norm=True,
        init_std=hf["initializer_range"],
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    if len(list(groupby(spec.layers()))) > 1:
        raise SpecError(Problem("blocks", len(spec.blocks), "cannot be written as family='bloom'", "use one block"))
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "n_layer": spec.num_layers,
        "n_head": first_attention(spec).heads,
        "seq_length": spec.max_position,
        "layer_norm_epsilon": spec.norm_eps,
        "initializer_range": spec.init_std,
        "tie_word_embeddings": spec.tied_embeddings,
    }


_MODEL, _LAYER = "transformer.", "transformer.h.{layer}."
_PUBLISHED = MappingProxyType(
    {
        "embedding.norm": _MODEL + "word_embeddings_layernorm",
        "input_layernorm": _LAYER + "input_layernorm",
        "self_attention.linear_qkv": _LAYER + "self_attention.query_key_value",  # query, key, value of each head
        "self_attention.linear_proj": _LAYER + "self_attention.dense",
        "pre_mlp_layernorm": _LAYER + "post_attention_layernorm",
        "mlp.linear_fc1": _LAYER + "mlp.dense_h_to_4h",
        "mlp.linear_fc2": _LAYER + "mlp.dense_4h_to_h",
        "decoder.final_layernorm": _MODEL + "ln_f",
    }
)
WEIGHTS = MappingProxyType(
    {
        "embedding.word_embeddings.weight": direct(_MODEL + "word_embeddings.weight"),
        **{
            f"{our}.{kind}": direct(f"{name}.{kind}") for our, name in _PUBLISHED.items() for kind in ("weight", "bias")
        },
        "output_layer.weight": direct("lm_head.weight"),
    }
)

BLOOM = Family(
    name="bloom",
    architectures=("BloomForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
    base="transformer.",
)
