"""GLM-4.5, 4.6, 4.7 and the Air models: biased attention that rotates half of each head, DeepSeek-V3's experts."""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    DEEPSEEK_EXPERTS,
    attention_of,
    decoder_config,
    first_attention,
)
from ridgeline.models.families.deepseek_v3 import SIGMOID_FIELDS, sigmoid_config, sigmoid_of
from ridgeline.models.families.latent import DEEPSEEK_FIELDS
from ridgeline.models.family import Family, Field, Values

FIELDS = (
    *DECODER_FIELDS,
    *DEEPSEEK_FIELDS,
    *SIGMOID_FIELDS,
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
    Field("attention_bias", bool, False),
    Field("use_qk_norm", bool, False),
)
UNSAID = ("moe_layer_freq", "scoring_func", "topk_method")  # what the files of this family take for granted


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    return sigmoid_of(hf, attention_of(hf, rope, qkv_bias=hf["attention_bias"], qk_norm=hf["use_qk_norm"]))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    traits = {"attention_bias": attention.qkv_bias, "use_qk_norm": attention.qk_norm}
    config = {**decoder_config(spec), **sigmoid_config(spec), **traits}
    return {name: value for name, value in config.items() if name not in UNSAID}


GLM4_MOE = Family(
    name="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    fields=FIELDS,
    rotary_share=0.5,
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType({**DECODER_WEIGHTS, **DEEPSEEK_EXPERTS}),
)
