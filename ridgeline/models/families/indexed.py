"""DeepSeek-V3.2 and GLM-5: DeepSeek-V3 whose attention sees the positions that a lightning indexer chooses.

Layers of GLM-5.2 share a choice (arXiv 2603.12201).
"""

from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.model import Block, Indexer, LatentAttention, Mlp, ModelSpec, Moe, Repeat, Rope
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
GLM_FIELDS = (
    *FIELDS,
    Field("indexer_rope_interleave", bool, True, only=(True,)),
    Field("index_topk_pattern", str | list[str] | None, None),
    Field("index_topk_freq", int, 1, minimum=0),
    Field("index_skip_topk_offset", int, 2, minimum=0),
)
PATTERN = MappingProxyType({"F": "full", "S": "shared"})


def _spec_of(hf: Values, rope: Rope, *, interleaved: bool) -> ModelSpec:
    layers, dense = hf["num_hidden_layers"], hf["first_k_dense_replace"]
    expected = ["dense"] * dense + ["sparse"] * (layers - dense)
    rule = f"must be what first_k_dense_replace={dense} says"
    require(hf["mlp_layer_types"] in (None, expected), "mlp_layer_types", hf["mlp_layer_types"], rule)
    kinds = hf["layer_types"]
    alike = kinds is None or set(kinds) == {"indexed_attention"}
    require(alike, "layer_types", kinds, "must be all 'indexed_attention'")
    sizes = {"heads": hf["index_n_heads"], "head_dim": hf["index_head_dim"], "topk": hf["index_topk"]}
    indexer = Indexer(**sizes, interleaved=interleaved)
    # The classes set head_dim themselves, whatever the file says.
    return sigmoid_of(hf, latent_of({**hf, "head_dim": None}, rope, indexer=indexer))


def _deepseek_of(hf: Values, rope: Rope) -> ModelSpec:
    kinds = hf["indexer_types"]
    alike = kinds is None or set(kinds) == {"full"}
    require(alike, "indexer_types", kinds, "must be all 'full': layers of this family share none")
    return _spec_of(hf, rope, interleaved=False)


def _glm_of(hf: Values, rope: Rope) -> ModelSpec:
    spec, kinds = _spec_of(hf, rope, interleaved=True), _indexer_types(hf)
    rule = f"must say 'full' or 'shared' of each of num_hidden_layers={spec.num_layers}, of the first 'full'"
    known = len(kinds) == spec.num_layers and set(kinds) <= {"full", "shared"} and kinds[0] == "full"
    require(known, "indexer_types", kinds, rule)
    blocks = [_shared(block, kind == "shared") for block, kind in zip(spec.layers(), kinds, strict=True)]
    # A layer of multi-token prediction has an indexer of its own.
    ahead = _shared(blocks[-1], False) if spec.mtp and kinds[-1] == "shared" else None
    return attrs.evolve(spec, blocks=tuple(Repeat(block=block, count=1) for block in blocks), mtp_block=ahead)


def _indexer_types(hf: Values) -> list[str]:
    """Whether each layer has an indexer of its own.

    Source:
        huggingface/transformers 5.23, ``GlmMoeDsaConfig``.
    """
    layers, pattern = hf["num_hidden_layers"], hf["index_topk_pattern"]
    if hf["indexer_types"] is not None:
        return hf["indexer_types"]
    if pattern is not None:
        return [PATTERN.get(letter, letter) for letter in pattern]
    return _every(hf["index_topk_freq"], hf["index_skip_topk_offset"], layers)


def _every(freq: int, offset: int, layers: int) -> list[str]:
    """An indexer in each of the first layers, then in every ``freq``-th."""
    return ["shared" if max(layer - offset + 1, 0) % max(freq, 1) else "full" for layer in range(layers)]


def _shared(block: Block, shared: bool) -> Block:
    mixer = block.mixer
    assert isinstance(mixer, LatentAttention)
    assert mixer.indexer is not None
    return attrs.evolve(block, mixer=attrs.evolve(mixer, indexer=attrs.evolve(mixer.indexer, shared=shared)))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    indexer = first_mixer(spec, LatentAttention).indexer
    config = {**latent_config(spec), **sigmoid_config(spec)}
    if indexer is None:
        return config  # which is no config of these families, as its reader says
    sizes = {"index_n_heads": indexer.heads, "index_head_dim": indexer.head_dim, "index_topk": indexer.topk}
    return {**config, **sizes}


def _glm_config(spec: ModelSpec) -> dict[str, Any]:
    """Where layers share, each by its kind, and by the rule that some readers want, where one makes that."""
    config = {**_config_of(spec), "rope_interleave": True}
    if not spec.shares_between_layers:
        return config
    mixers = [block.mixer for block in spec.layers() if isinstance(block.mixer, LatentAttention)]
    kinds = ["shared" if mixer.indexer and mixer.indexer.shared else "full" for mixer in mixers]
    first = kinds.index("shared")
    freq = [*kinds[first:], "full"].index("full") + 1
    rule = {"index_topk_freq": freq, "index_skip_topk_offset": first}
    return {**config, "indexer_types": kinds, **(rule if _every(freq, first, len(kinds)) == kinds else {})}


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


def _family(name: str, architecture: str, **readers: Any) -> Family:
    return Family(
        name=name,
        architectures=(architecture,),
        interleaved=True,
        mixers=(LatentAttention,),
        feed_forwards=(Moe, Mlp),
        weights=_WEIGHTS,
        **readers,
    )


DEEPSEEK_V32 = _family(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    fields=FIELDS,
    spec_of=_deepseek_of,
    config_of=_config_of,
)
GLM_MOE_DSA = _family("glm_moe_dsa", "GlmMoeDsaForCausalLM", fields=GLM_FIELDS, spec_of=_glm_of, config_of=_glm_config)
