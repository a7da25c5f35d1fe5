"""DeepSeek-V3 and R1, and Kimi-K2: sigmoid scores with a bias moved by load, multi-token prediction."""

from typing import Any

import attrs

from ridgeline.core.model import LatentAttention, Mixer, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import first_mixer
from ridgeline.models.families.latent import (
    DEEPSEEK_FIELDS,
    LATENT_FIELDS,
    LATENT_WEIGHTS,
    deepseek_config,
    deepseek_of,
    latent_config,
    latent_of,
)
from ridgeline.models.family import Family, Field, Values

SIGMOID_FIELDS = (
    Field("scoring_func", str, "sigmoid", only=("sigmoid",)),
    Field("topk_method", str, "noaux_tc", only=("noaux_tc",)),
    Field("norm_topk_prob", bool, True),
    Field("num_nextn_predict_layers", int, minimum=0, alias="num_mtp_layers"),
)
FIELDS = (*LATENT_FIELDS, *DEEPSEEK_FIELDS, *SIGMOID_FIELDS, Field("rope_interleave", bool, True))


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    attention = latent_of(hf, attrs.evolve(rope, interleaved=hf["rope_interleave"]))
    return sigmoid_of(hf, attention)


def sigmoid_of(hf: Values, attention: Mixer) -> ModelSpec:
    """The model around its attention, with the experts of ``SIGMOID_FIELDS``."""
    traits = {"score": "sigmoid", "expert_bias": True, "normalize_topk": hf["norm_topk_prob"]}
    return deepseek_of(hf, attention, mtp=hf["num_nextn_predict_layers"], **traits)


def sigmoid_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``sigmoid_of`` reads."""
    return {
        **deepseek_config(spec),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": spec.mtp,
    }


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    interleaved = first_mixer(spec, LatentAttention).rope.interleaved
    return {**latent_config(spec), **sigmoid_config(spec), "rope_interleave": interleaved}


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    fields=FIELDS,
    mixers=(LatentAttention,),
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=LATENT_WEIGHTS,
)
