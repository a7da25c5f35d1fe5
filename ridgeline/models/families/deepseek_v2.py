"""DeepSeek-V2, V2.5 and V2-Lite: softmax scores, groups of experts by their best one."""

from typing import Any

from ridgeline.core.model import LatentAttention, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import first_feed_forward
from ridgeline.models.families.latent import (
    DEEPSEEK_FIELDS,
    LATENT_FIELDS,
    LATENT_WEIGHTS,
    deepseek_config,
    deepseek_of,
    latent_config,
    latent_of,
)
from ridgeline.models.family import Family, Field, Values, require

FIELDS = (
    *LATENT_FIELDS,
    *DEEPSEEK_FIELDS,
    Field("scoring_func", str, "softmax", only=("softmax",)),
    Field("topk_method", str, only=("greedy", "group_limited_greedy")),
    Field("norm_topk_prob", bool, False, only=(False,)),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    groups, method = hf["n_group"] or 1, hf["topk_method"]
    rule = f"must be 'group_limited_greedy' with n_group={groups} > 1, else 'greedy'"
    require((groups > 1) == (method == "group_limited_greedy"), "topk_method", method, rule)
    return deepseek_of(hf, latent_of(hf, rope), normalize_topk=False, group_score="max")


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    grouped = first_feed_forward(spec, Moe).groups > 1
    return {
        **latent_config(spec),
        **deepseek_config(spec),
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy" if grouped else "greedy",
    }


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    fields=FIELDS,
    interleaved=True,
    mixers=(LatentAttention,),
    feed_forwards=(Moe, Mlp),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=LATENT_WEIGHTS,
)
