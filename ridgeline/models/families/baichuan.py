"""Baichuan and Baichuan 2: one projection for queries, keys and values; 13B has ALiBi, Baichuan 2 a normalised head.

Two classes are published as ``BaichuanForCausalLM`` (``BaiChuanForCausalLM`` is the first 7B alone). Files of 13B have
no ``max_position_embeddings``. Which of two 13B a file is of, its vocabulary says, as vLLM's ``baichuan.py`` has it.
"""

from types import MappingProxyType
from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    attention_of,
    decoder_of,
    first_attention,
    first_feed_forward,
    shell_config,
)
from ridgeline.models.family import Family, Field, Values, require
from ridgeline.models.hf_template import packed_qkv

VOCABULARIES = MappingProxyType({64000: False, 125696: True})
"""Whether the head is normalised, by the size of the vocabulary."""

FIRST, LATER = "BaiChuanForCausalLM", "BaichuanForCausalLM"
FIELDS = (
    *(field for field in DECODER_FIELDS if field.name != "max_position_embeddings"),
    Field("architectures", list[str] | None, None),
    Field("intermediate_size", int),
    Field("max_position_embeddings", int | None, None),
    Field("model_max_length", int | None, None),
    Field("z_loss_weight", float | None, None, only=(None, 0.0)),  # of Baichuan 2 alone
    Field("rope_theta", float | None, None, only=(None,)),
    *(Field(name, dict | None, None, only=(None,)) for name in ("rope_scaling", "rope_parameters")),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    longest = hf["max_position_embeddings"] or hf["model_max_length"]
    require(longest is not None, "model_max_length", None, "the config must give it, or max_position_embeddings")
    positions = "rope" if hf["max_position_embeddings"] else "alibi"
    everyone = {"num_key_value_heads": None, "head_dim": None}
    block = Block(
        mixer=attention_of({**hf, **everyone}, rope, positions=positions),
        feed_forward=Mlp(ffn_hidden=hf["intermediate_size"]),
    )
    shell = {**hf, "max_position_embeddings": longest}
    return decoder_of(shell, (block,) * hf["num_hidden_layers"], normalized_head=_is_second(hf))


def _is_second(hf: Values) -> bool:
    if FIRST in (hf["architectures"] or ()):
        return False
    if hf["max_position_embeddings"] or hf["z_loss_weight"] is not None:
        return True
    known = ", ".join(map(str, VOCABULARIES))
    require(hf["vocab_size"] in VOCABULARIES, "vocab_size", hf["vocab_size"], "does not tell Baichuan from Baichuan 2",
            f"known: {known}; give z_loss_weight=0 for Baichuan 2")  # fmt: skip
    return VOCABULARIES[hf["vocab_size"]]


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    attention = first_attention(spec)
    rotary, second = attention.positions == "rope", spec.normalized_head
    return {
        **{name: value for name, value in shell_config(spec).items() if name != "max_position_embeddings"},
        "architectures": [FIRST if rotary and not second else LATER],
        "num_attention_heads": attention.heads,
        "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden,
        "max_position_embeddings" if rotary else "model_max_length": spec.max_position,
        **({"z_loss_weight": 0} if second else {}),
    }


BAICHUAN = Family(
    name="baichuan",
    architectures=(LATER, FIRST),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=MappingProxyType(
        {
            **DECODER_WEIGHTS,
            "self_attention.linear_qkv.weight": packed_qkv("model.layers.{layer}.self_attn.W_pack.weight"),
        }
    ),
)
