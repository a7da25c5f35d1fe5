"""GPT-2, and GPT-3 in its shape: learned positions, LayerNorms and biases everywhere, GELU; matrices transposed."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat, Rope
from ridgeline.models.families.decoder import first_attention, first_feed_forward
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct, packed_qkv, transposed

FIELDS = (
    Field("vocab_size", int),
    Field("n_positions", int, alias="max_position_embeddings"),
    Field("n_embd", int, alias="hidden_size"),
    Field("n_layer", int, alias="num_hidden_layers"),
    Field("n_head", int, alias="num_attention_heads"),
    Field("n_inner", int | None, None),
    Field("activation_function", str, "gelu_new", only=("gelu_new", "gelu_pytorch_tanh")),
    Field("layer_norm_epsilon", float, 1e-5, minimum=0),
    Field("initializer_range", float, 0.02, minimum=0),
    Field("scale_attn_weights", bool, True, only=(True,)),
    Field("scale_attn_by_inverse_layer_idx", bool, False, only=(False,)),
    Field("reorder_and_upcast_attn", bool, False),  # the same in full precision
    Field("add_cross_attention", bool, False, only=(False,)),
    Field("tie_word_embeddings", bool, True),
    # Of training with transformers; here a job says how it trains.
    *(Field(f"{part}_pdrop", float, 0.1, minimum=0) for part in ("resid", "embd", "attn")),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    hidden, heads = hf["n_embd"], hf["n_head"]
    require(hidden % heads == 0, "n_embd", hidden, f"must be a multiple of n_head={heads}")
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": hidden // heads}
    attention = Attention(**sizes, qkv_bias=True, out_bias=True, positions="none")
    mlp = Mlp(ffn_hidden=hf["n_inner"] or 4 * hidden, activation="gelu_tanh", bias=True)
    return ModelSpec(
        vocab_size=hf["vocab_size"],
        hidden=hidden,
        max_position=hf["n_positions"],
        blocks=(Repeat(block=Block(mixer=attention, feed_forward=mlp), count=hf["n_layer"]),),
        norm="layer",
        norm_eps=hf["layer_norm_epsilon"],
        tied_embeddings=hf["tie_word_embeddings"],
        learned_positions=True,
        init_std=hf["initializer_range"],
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    ffn = first_feed_forward(spec, Mlp).ffn_hidden
    return {
        "vocab_size": spec.vocab_size,
        "n_positions": spec.max_position,
        "n_embd": spec.hidden,
        "n_layer": spec.num_layers,
        "n_head": first_attention(spec).heads,
        "n_inner": None if ffn == 4 * spec.hidden else ffn,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": spec.norm_eps,
        "initializer_range": spec.init_std,
        "tie_word_embeddings": spec.tied_embeddings,
        **{f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
    }


_LAYER = "transformer.h.{layer}."
WEIGHTS = MappingProxyType(
    {
        "embedding.word_embeddings.weight": direct("transformer.wte.weight"),
        "embedding.position_embeddings.weight": direct("transformer.wpe.weight"),
        **{
            f"{ours}.{kind}": direct(f"{published}.{kind}")
            for ours, published in (
                ("input_layernorm", _LAYER + "ln_1"),
                ("pre_mlp_layernorm", _LAYER + "ln_2"),
                ("decoder.final_layernorm", "transformer.ln_f"),
            )
            for kind in ("weight", "bias")
        },
        "self_attention.linear_qkv.weight": transposed(packed_qkv(_LAYER + "attn.c_attn.weight")),
        "self_attention.linear_qkv.bias": packed_qkv(_LAYER + "attn.c_attn.bias"),
        "self_attention.linear_proj.weight": transposed(direct(_LAYER + "attn.c_proj.weight")),
        "self_attention.linear_proj.bias": direct(_LAYER + "attn.c_proj.bias"),
        "mlp.linear_fc1.weight": transposed(direct(_LAYER + "mlp.c_fc.weight")),
        "mlp.linear_fc1.bias": direct(_LAYER + "mlp.c_fc.bias"),
        "mlp.linear_fc2.weight": transposed(direct(_LAYER + "mlp.c_proj.weight")),
        "mlp.linear_fc2.bias": direct(_LAYER + "mlp.c_proj.bias"),
        "output_layer.weight": direct("lm_head.weight"),
    }
)

GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=WEIGHTS,
    base="transformer.",
)
