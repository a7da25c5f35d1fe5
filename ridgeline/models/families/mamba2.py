"""Mamba2: state spaces in every layer, and nothing else."""

from collections.abc import Mapping
from math import inf
from types import MappingProxyType, NoneType
from typing import Any

from ridgeline.core.model import Block, Mamba2, ModelSpec, Repeat, Rope
from ridgeline.models.families.decoder import first_mixer
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import Template, direct

LONGEST = 2**20  # no position is told apart, so that nothing but memory ends a sequence
FREE = (None, [0.0, inf], (0.0, inf), [0.0, {"__float__": "Infinity"}])  # as transformers 4 and 5 write infinity
STEP_LIMIT = Field("time_step_limit", list | tuple | None, None, only=FREE)  # else steps are cut in every forward
FIELDS = (
    Field("vocab_size", int),
    Field("hidden_size", int),
    Field("num_hidden_layers", int),
    Field("num_heads", int),
    Field("head_dim", int, 64),
    Field("state_size", int),
    Field("n_groups", int),
    Field("expand", int, 2),
    Field("conv_kernel", int, 4),
    Field("use_bias", bool, False),
    Field("use_conv_bias", bool, True),
    Field("chunk_size", int, 256),
    Field("layer_norm_epsilon", float, 1e-5, minimum=0),
    Field("hidden_act", str, "silu", only=("silu",)),
    Field("initializer_range", float, 0.1, minimum=0),
    Field("residual_in_fp32", bool, True),
    Field("rescale_prenorm_residual", bool, False),
    Field("tie_word_embeddings", bool, False),
    # Of the first values of steps, which weights that are read replace.
    *(Field(f"time_step_{name}", float | None, None, minimum=0) for name in ("min", "max", "floor")),
    Field("time_step_rank", str | int | None, None),
    STEP_LIMIT,
)


def mamba_weights(root: str) -> Mapping[str, Template]:
    """Where the parameters of Mamba2 layers, the embedding and both ends' norms are published, below ``root``."""
    layer = f"{root}.layers.{{layer}}."
    parts = ("dt_bias", "A_log", "D", "norm.weight")
    linears = (f"{part}.{kind}" for part in ("in_proj", "conv1d", "out_proj") for kind in ("weight", "bias"))
    return MappingProxyType(
        {
            "embedding.word_embeddings.weight": direct(f"{root}.embeddings.weight"),
            "norm.weight": direct(layer + "norm.weight"),
            **{f"mixer.{part}": direct(f"{layer}mixer.{part}") for part in (*parts, *linears)},
            "decoder.final_layernorm.weight": direct(f"{root}.norm_f.weight"),
            "output_layer.weight": direct("lm_head.weight"),
        }
    )


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    width, heads, head_dim = hf["expand"] * hf["hidden_size"], hf["num_heads"], hf["head_dim"]
    rule = f"times head_dim={head_dim} must be expand*hidden_size={width}"
    require(heads * head_dim == width, "num_heads", heads, rule)
    mixer = Mamba2(
        heads=heads,
        head_dim=head_dim,
        state=hf["state_size"],
        groups=hf["n_groups"],
        conv_kernel=hf["conv_kernel"],
        conv_bias=hf["use_conv_bias"],
        bias=hf["use_bias"],
        chunk=hf["chunk_size"],
    )
    return ModelSpec(
        vocab_size=hf["vocab_size"],
        hidden=hf["hidden_size"],
        max_position=LONGEST,
        blocks=(Repeat(block=Block(mixer=mixer), count=hf["num_hidden_layers"]),),
        norm_eps=hf["layer_norm_epsilon"],
        tied_embeddings=hf["tie_word_embeddings"],
        init_std=hf["initializer_range"],
    )


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    mixer = first_mixer(spec, Mamba2)
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.num_layers,
        "num_heads": mixer.heads,
        "head_dim": mixer.head_dim,
        "state_size": mixer.state,
        "n_groups": mixer.groups,
        "expand": max(1, mixer.width // spec.hidden),
        "conv_kernel": mixer.conv_kernel,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "chunk_size": mixer.chunk,
        "layer_norm_epsilon": spec.norm_eps,
        "initializer_range": spec.init_std,
        "tie_word_embeddings": spec.tied_embeddings,
    }


MAMBA2 = Family(
    name="mamba2",
    architectures=("Mamba2ForCausalLM",),
    fields=FIELDS,
    mixers=(Mamba2,),
    feed_forwards=(NoneType,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=mamba_weights("backbone"),
)
