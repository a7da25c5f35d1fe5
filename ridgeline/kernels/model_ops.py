"""Which ops the layers of a model call, and the sizes of those calls that kernels may limit."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ridgeline.core.model import (
    Activation,
    Attention,
    FeedForward,
    GatedDeltaNet,
    Indexer,
    LatentAttention,
    Mamba2,
    Mixer,
    ModelSpec,
    Moe,
    is_gated,
)

_ACTIVATION_OPS: Mapping[Activation, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "swiglu": ("swiglu", MappingProxyType({})),
        "geglu": ("geglu", MappingProxyType({"approximate": False})),
        "geglu_tanh": ("geglu", MappingProxyType({"approximate": True})),
        "squared_relu": ("squared_relu", MappingProxyType({})),
    }
)
BOUND_BY_THEIR_OPS: tuple[Activation, ...] = ("shifted_swiglu", "bounded_swiglu")
"""Of other activations, inputs are bounded before."""


def activation_op(activation: Activation, limit: float | None) -> tuple[str, Mapping[str, Any]] | None:
    """The op of an activation, and what it is called with beside the tensor; None for those of torch everywhere."""
    if activation == "bounded_swiglu" and limit is not None:
        return "bounded_swiglu", {"limit": limit}
    if activation == "shifted_swiglu":
        return "clamped_swiglu", {"interleaved": False, "limit": math.inf if limit is None else limit}
    return _ACTIVATION_OPS.get("swiglu" if activation == "bounded_swiglu" else activation)


def has_modified_scores(mixer: Attention) -> bool:
    """Whether an attention's scores are more than scaled products, which the op ``attention`` does not know."""
    return mixer.positions == "alibi" or mixer.softcap is not None or mixer.sinks


def model_ops(model: ModelSpec, *, ring: int = 1) -> tuple[str, ...]:
    """The ops that the layers of a model call, each once, by name; keys and values go round ``ring`` ranks."""
    ops = set(_ops(model))
    if ring > 1 and "attention" in ops:
        ops = ops - {"attention"} | {"partial_attention", "partial_attention_grad"}
    return tuple(sorted(ops))


def model_traits(model: ModelSpec, *, tp: int, ep: int, etp: int) -> Mapping[str, int]:
    """Sizes of those calls on a rank of a layout: the largest where layers differ; a yes or a no is 1 or 0."""
    traits = {"hidden": model.hidden, "heads": 1, "head_dim": 1, "softcap": 0, "sinks": 0}
    traits |= {"key_head_dim": 0, "value_head_dim": 0}
    for moe in model.moes:
        sizes = (model.hidden, moe.ffn_hidden // etp * (2 if is_gated(moe.activation) else 1))
        own = {"in_features": max(sizes), "out_features": max(sizes), "local_experts": moe.experts // ep}
        traits = traits | {name: max(size, traits.get(name, 0)) for name, size in own.items()}
    for block in model.kinds:
        match block.mixer:
            case Attention(heads=heads, head_dim=head_dim, softcap=softcap, sinks=sinks):
                own = {
                    "heads": heads // tp,
                    "head_dim": head_dim,
                    "softcap": int(softcap is not None),
                    "sinks": int(sinks),
                }
            case LatentAttention(heads=heads, qk_head_dim=head_dim, indexer=indexer) as mixer:
                own = {"heads": heads // tp, "head_dim": head_dim}
                if indexer is not None:
                    own |= {"latent": mixer.kv_lora_rank, "rope_head_dim": mixer.rope_head_dim}
                    own |= {"index_head_dim": indexer.head_dim, "index_topk": indexer.topk}
            case GatedDeltaNet(key_head_dim=key_head_dim, value_head_dim=value_head_dim):
                own = {"key_head_dim": key_head_dim, "value_head_dim": value_head_dim}
            case _:
                own = {}
        traits |= {name: max(size, traits.get(name, 0)) for name, size in own.items()}
    return traits


def _ops(model: ModelSpec) -> Iterator[str]:
    yield "layer_norm" if model.norm == "layer" else "rms_norm"
    for block in model.kinds:
        yield from _mixer_ops(block.mixer)
        for part in (block.feed_forward, block.shortcut):
            yield from _feed_forward_ops(part)
    if any(moe.score == "sparsemixer" for moe in model.moes):
        yield "sparsemixer"
    if any(not moe.bias for moe in model.moes):
        yield "grouped_matmul"


def _feed_forward_ops(part: FeedForward | None) -> Iterator[str]:
    if part is None:
        return
    limits = [part.limit]
    if isinstance(part, Moe) and part.shared_ffn is not None:
        limits.append(part.shared_limit)
    for limit in limits:
        if called := activation_op(part.activation, limit):
            yield called[0]


def _mixer_ops(mixer: Mixer | None) -> Iterator[str]:
    match mixer:
        case Attention():
            yield "flash_attention" if has_modified_scores(mixer) else "attention"
            if mixer.positions == "rope":
                yield "rope"
        case LatentAttention(indexer=Indexer()):
            yield from ("layer_norm", "lightning_indexer", "rope", "sparse_attention")
        case LatentAttention():
            yield from ("attention", "rope")
        case GatedDeltaNet():
            yield from ("causal_conv1d", "gated_delta_rule", "rms_norm")
        case Mamba2():
            yield from ("causal_conv1d", "mamba2_scan")
