"""What the decoders of the Llama line share: their fields, their weights' names, and the shell around their blocks."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any, TypeVar

from ridgeline.core.errors import Problem, SpecError, divisors, one_of
from ridgeline.core.model import Attention, Block, Mixer, Mlp, ModelSpec, Moe, Repeat, Rope
from ridgeline.models.family import Field, Values, require
from ridgeline.models.hf_rope import require_frequencies, rope_config
from ridgeline.models.hf_template import Template, direct, gate_up, grouped_qkv

F = TypeVar("F", Mlp, Moe)
M = TypeVar("M", bound=Mixer)
P = TypeVar("P")

DECODER_FIELDS = (
    Field("vocab_size", int),
    Field("hidden_size", int),
    Field("num_hidden_layers", int),
    Field("num_attention_heads", int),
    Field("max_position_embeddings", int),
    Field("rms_norm_eps", float, minimum=0),
    Field("tie_word_embeddings", bool, False),
    Field("initializer_range", float, 0.02, minimum=0),
    Field("hidden_act", str, "silu", only=("silu",)),
    Field("attention_dropout", float, 0.0, only=(0.0,)),
    Field("quantization_config", dict | None, None, only=(None,)),
)

WINDOW_FIELDS = (
    Field("use_sliding_window", bool, False),
    Field("sliding_window", int | None, None, minimum=0),  # 0 where none slides, in files of transformers 5
    Field("max_window_layers", int, 28, minimum=0),
    Field("layer_types", list[str] | None, None),
)

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."

DECODER_WEIGHTS: Mapping[str, Template] = MappingProxyType(
    {
        "embedding.word_embeddings.weight": direct("model.embed_tokens.weight"),
        "input_layernorm.weight": direct(_LAYER + "input_layernorm.weight"),
        "self_attention.linear_qkv.weight": grouped_qkv(*(_ATTENTION + f"{x}_proj.weight" for x in "qkv")),
        "self_attention.linear_qkv.bias": grouped_qkv(*(_ATTENTION + f"{x}_proj.bias" for x in "qkv")),
        "self_attention.q_layernorm.weight": direct(_ATTENTION + "q_norm.weight"),
        "self_attention.k_layernorm.weight": direct(_ATTENTION + "k_norm.weight"),
        "self_attention.linear_proj.weight": direct(_ATTENTION + "o_proj.weight"),
        "self_attention.linear_proj.bias": direct(_ATTENTION + "o_proj.bias"),
        "pre_mlp_layernorm.weight": direct(_LAYER + "post_attention_layernorm.weight"),
        "mlp.linear_fc1.weight": gate_up(_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
        "mlp.linear_fc1.bias": gate_up(_LAYER + "mlp.gate_proj.bias", _LAYER + "mlp.up_proj.bias"),
        "mlp.linear_fc2.weight": direct(_LAYER + "mlp.down_proj.weight"),
        "mlp.linear_fc2.bias": direct(_LAYER + "mlp.down_proj.bias"),
        "decoder.final_layernorm.weight": direct("model.norm.weight"),
        "output_layer.weight": direct("lm_head.weight"),
    }
)


def moe_weights(
    *, router: str, gate: str, up: str, down: str, base: Mapping[str, Template] = DECODER_WEIGHTS
) -> Mapping[str, Template]:
    """The names of a decoder with experts, each given within its layer, beside those of ``base``."""
    expert = "mlp.experts.local_experts.{expert}."
    return MappingProxyType(
        {
            **base,
            "mlp.router.weight": direct(_LAYER + router),
            expert + "linear_fc1.weight": gate_up(_LAYER + gate, _LAYER + up),
            expert + "linear_fc2.weight": direct(_LAYER + down),
        }
    )


SPARSE_WEIGHTS = moe_weights(
    router="mlp.gate.weight",
    gate="mlp.experts.{expert}.gate_proj.weight",
    up="mlp.experts.{expert}.up_proj.weight",
    down="mlp.experts.{expert}.down_proj.weight",
)
"""A decoder with experts, as Qwen's name them."""

_EXPERT, _SHARED, _MTP = _LAYER + "mlp.experts.{expert}.", _LAYER + "mlp.shared_experts.", "mtp."

DEEPSEEK_EXPERTS: Mapping[str, Template] = MappingProxyType(
    {
        "mlp.router.weight": direct(_LAYER + "mlp.gate.weight"),
        "mlp.router.expert_bias": direct(_LAYER + "mlp.gate.e_score_correction_bias"),
        "mlp.experts.local_experts.{expert}.linear_fc1.weight": gate_up(
            _EXPERT + "gate_proj.weight", _EXPERT + "up_proj.weight"
        ),
        "mlp.experts.local_experts.{expert}.linear_fc2.weight": direct(_EXPERT + "down_proj.weight"),
        "mlp.shared_experts.linear_fc1.weight": gate_up(_SHARED + "gate_proj.weight", _SHARED + "up_proj.weight"),
        "mlp.shared_experts.linear_fc2.weight": direct(_SHARED + "down_proj.weight"),
        _MTP + "enorm.weight": direct(_LAYER + "enorm.weight"),
        _MTP + "hnorm.weight": direct(_LAYER + "hnorm.weight"),
        _MTP + "eh_proj.weight": direct(_LAYER + "eh_proj.weight"),
        _MTP + "final_layernorm.weight": direct(_LAYER + "shared_head.norm.weight"),
    }
)
"""Experts, shared experts and multi-token prediction, a further layer, as DeepSeek-V3 and its kin name them."""


def decoder_of(hf: Values, blocks: tuple[Block, ...], **traits: Any) -> ModelSpec:
    """The model around its blocks."""
    return ModelSpec(
        vocab_size=hf["vocab_size"],
        hidden=hf["hidden_size"],
        max_position=hf["max_position_embeddings"],
        blocks=tuple(Repeat(block=block, count=len(tuple(run))) for block, run in groupby(blocks)),
        norm_eps=hf["rms_norm_eps"],
        tied_embeddings=hf["tie_word_embeddings"],
        init_std=hf["initializer_range"],
        **traits,
    )


def attention_of(hf: Values, rope: Rope, **traits: Any) -> Attention:
    """The attention of a layer; without a published head size the hidden size is shared out over the heads."""
    hidden, heads, head_dim = hf["hidden_size"], hf["num_attention_heads"], hf["head_dim"]
    kv_heads = hf["num_key_value_heads"] or heads
    rule = f"must divide num_attention_heads={heads}"
    require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, rule, one_of(divisors(heads)))
    if head_dim is None:
        rule = f"must be a multiple of num_attention_heads={heads} when head_dim is not given"
        require(hidden % heads == 0, "hidden_size", hidden, rule)
        head_dim = hidden // heads
    require_frequencies(rope, head_dim)
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, **traits)


def first_attention(spec: ModelSpec) -> Attention:
    """The attention of the first layer that has one."""
    return first_mixer(spec, Attention)


def first_mixer(spec: ModelSpec, kind: type[M]) -> M:
    """The first mixer of ``kind``."""
    return _first((run.block.mixer for run in spec.blocks), kind, spec)


def first_feed_forward(spec: ModelSpec, kind: type[F]) -> F:
    """The first feed-forward of ``kind``."""
    return _first((run.block.feed_forward for run in spec.blocks), kind, spec)


def _first(parts: Iterable[Any], kind: type[P], spec: ModelSpec) -> P:
    found = next((part for part in parts if isinstance(part, kind)), None)
    if found is None:
        rule = f"needs a layer of kind={getattr(kind, 'kind', kind.__name__)!r}"
        raise SpecError(Problem("family", spec.family, rule))
    return found


def decoder_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields of ``decoder_of``, and those of ``attention_of`` for the first layer that has one."""
    return {**shell_config(spec), **attention_config(first_attention(spec))}


def attention_config(attention: Attention) -> dict[str, Any]:
    """The fields of ``attention_of``."""
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **rope_config(attention.rope),
    }


def shell_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields of ``decoder_of``; no token ids, which a spec does not hold."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.num_layers,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_position,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_embeddings,
        "initializer_range": spec.init_std,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def mtp_of(hf: Values) -> int:
    """Layers of multi-token prediction, in families whose files name but one."""
    layers = hf["num_nextn_predict_layers"]
    require(layers <= 1, "num_nextn_predict_layers", layers, "must be 0 or 1: files have names for one layer")
    return layers


def mtp_config(spec: ModelSpec) -> dict[str, Any]:
    """The field that ``mtp_of`` reads."""
    return {"num_nextn_predict_layers": spec.mtp} if spec.mtp else {}


def router_losses(experts: Moe) -> dict[str, Any]:
    """The coefficients of the router's losses; transformers has no z-loss and keeps a field it does not know."""
    z_loss = {"router_z_loss_coef": experts.z_loss} if experts.z_loss else {}
    return {"router_aux_loss_coef": experts.aux_loss, **z_loss}


def layer_windows(hf: Values) -> tuple[int | None, ...]:
    """The attention window of each layer, in the families that slide it in some (``WINDOW_FIELDS``)."""
    layers, kinds = hf["num_hidden_layers"], hf["layer_types"]
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    if kinds is None:
        return tuple(window if layer >= hf["max_window_layers"] else None for layer in range(layers))
    known = {"full_attention": None, "sliding_attention": window}
    require(len(kinds) == layers, "layer_types", kinds, f"must name num_hidden_layers={layers} layers")
    require(all(kind in tuple(known) for kind in kinds), "layer_types", kinds, f"must hold only {' and '.join(known)}")
    slides = "sliding_attention" in kinds
    require(window is not None or not slides, "layer_types", kinds, "needs use_sliding_window and a sliding_window")
    return tuple(known[kind] for kind in kinds)


def window_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``layer_windows`` reads."""
    windows = [block.mixer.window if isinstance(block.mixer, Attention) else None for block in spec.layers()]
    sliding = [layer for layer, window in enumerate(windows) if window is not None]
    if not sliding:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": spec.num_layers}
    return {
        "use_sliding_window": True,
        "sliding_window": windows[sliding[0]],
        "max_window_layers": sliding[0],
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }
