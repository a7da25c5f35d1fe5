"""DeepSeek-V3.2 and GLM-5: DeepSeek-V3 whose attention sees the positions that a lightning indexer chooses."""

from functools import partial
from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Indexer, LatentAttention, Mlp, ModelSpec, Moe, Rope
from ridgeline.models.families.decoder import first_mixer
from ridgeline.models.families.deepseek_v3 import SIGMOID_FIELDS, sigmoid_config, sigmoid_of
from ridgeline.models.families.latent import DEEPSEEK_FIELDS, LATENT_FIELDS, LATENT_WEIGHTS, latent_config, latent_of
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import direct

FIELDS = (
    *LATENT_FIELDS,
    *DEEPSEEK_FIELDS,
    *SIGMOID_FIELDS,
    Field("rope_interleave", bool, True, only=(True,)),
    Field("index_n_heads", int),
    Field("index_head_dim", int),
    Field("index_topk", int),
    Field("indexer_types", list[str] | None, None),
    Field("mlp_layer_types", list[str] | None, None),
    Field("layer_types", list[str] | None, None),
)


def _spec_of(hf: Values, rope: Rope, *, interleaved: bool) -> ModelSpec:
    layers, dense = hf["num_hidden_layers"], hf["first_k_dense_replace"]
    for name, kind, rule in (
        ("indexer_types", "full", "must be all 'full': indexers that layers share are not modelled"),
        ("layer_types", "indexed_attention", "must be all 'indexed_attention'"),
    ):
        require(hf[name] is None or set(hf[name]) == {kind}, name, hf[name], rule)
    expected = ["dense"] * dense + ["sparse"] * (layers - dense)
    rule = f"must be what first_k_dense_replace={dense} says"
    require(hf["mlp_layer_types"] in (None, expected), "mlp_layer_types", hf["mlp_layer_types"], rule)
    sizes = {"heads": hf["index_n_heads"], "head_dim": hf["index_head_dim"], "topk": hf["index_topk"]}
    indexer = Indexer(**sizes, interleaved=interleaved)
    return sigmoid_of(hf, latent_of(hf, rope, indexer=indexer))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    indexer = first_mixer(spec, LatentAttention).indexer
    interleaved = {"rope_interleave": True} if spec.family == "glm_moe_dsa" else {}  # DeepSeek-V3.2 does not say
    config = {**latent_config(spec), **sigmoid_config(spec), **interleaved}
    if indexer is None:
        return config  # which is no config of these families, as its reader says
    sizes = {"index_n_heads": indexer.heads, "index_head_dim": indexer.head_dim, "index_topk": indexer.topk}
    return {**config, **sizes}


_OURS, _THEIRS = "self_attention.core_attention.indexer.", "model.layers.{layer}.self_attn.indexer."
_WEIGHTS = MappingProxyType(
    {
        **LATENT_WEIGHTS,
        _OURS + "linear_wq_b.weight": direct(_THEIRS + "wq_b.weight"),
        _OURS + "linear_wk.weight": direct(_THEIRS + "wk.weight"),
        _OURS + "k_norm.weight": direct(_THEIRS + "k_norm.weight"),
        _OURS + "k_norm.bias": direct(_THEIRS + "k_norm.bias"),
        _OURS + "linear_weights_proj.weight": direct(_THEIRS + "weights_proj.weight"),
    }
)


def _family(name: str, architecture: str, *, interleaved: bool) -> Family:
    return Family(
        name=name,
        architectures=(architecture,),
        fields=FIELDS,
        interleaved=True,
        mixers=(LatentAttention,),
        feed_forwards=(Moe, Mlp),
        spec_of=partial(_spec_of, interleaved=interleaved),
        config_of=_config_of,
        weights=_WEIGHTS,
    )


DEEPSEEK_V32 = _family("deepseek_v32", "DeepseekV32ForCausalLM", interleaved=False)
GLM_MOE_DSA = _family("glm_moe_dsa", "GlmMoeDsaForCausalLM", interleaved=True)
