"""Hypothesis strategies over whole specs, derived from the annotations and bounds of their fields.

A new field of a spec is covered from the day it is added. Only rules over several fields of one spec are told here,
in `RULES`.
"""

import functools
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from hypothesis import strategies as st

from ridgeline.core.cluster import Cluster
from ridgeline.core.fields import union_members
from ridgeline.core.job import Comm, Data, Dpo, FullRecompute, Init, Job, Lora, Optimizer, Precision, Profile
from ridgeline.core.layout import Layout
from ridgeline.core.model import (
    Attention,
    Block,
    GatedDeltaNet,
    Indexer,
    LatentAttention,
    Llama3Rope,
    LongRope,
    Mamba2,
    Mlp,
    ModelSpec,
    Moe,
    Repeat,
)

BIG_INT = 2**63 - 1
"""The largest integer that JSON and TOML readers agree on."""


def specs(cls: type[Any], **fixed: Any) -> st.SearchStrategy[Any]:
    """Every valid spec of a class, with some fields (strategies) given."""
    fields = {field.name: values(field) for field in attrs.fields(cls)}
    return st.fixed_dictionaries({**fields, **RULES.get(cls, dict)(), **fixed}).map(lambda chosen: _built(cls, chosen))


def jobs() -> st.SearchStrategy[Job]:
    """Every valid job; that a plan exists for it is not promised."""
    return specs(Job)


def models() -> st.SearchStrategy[ModelSpec]:
    """Every valid model."""
    return specs(ModelSpec)


def layouts() -> st.SearchStrategy[Layout]:
    """Every valid layout, of any degrees."""
    return specs(Layout)


def clusters() -> st.SearchStrategy[Cluster]:
    """Every valid cluster."""
    return specs(Cluster)


def attention_models(*, max_layers: int = 4) -> st.SearchStrategy[ModelSpec]:
    """Small models of the kind that can be planned and trained: attention with an Mlp or a Moe."""
    attention = specs(Attention, head_dim=st.sampled_from((2, 4, 8)), window=st.none())
    feed_forward = specs(Mlp, ffn_hidden=st.integers(1, 32)) | specs(
        Moe, ffn_hidden=st.integers(1, 32), zero_experts=st.just(0)
    )
    block = specs(Block, mixer=attention, feed_forward=feed_forward, shortcut=st.none())
    blocks = st.lists(specs(Repeat, block=block, count=st.integers(1, max_layers)), min_size=1, max_size=2)
    return specs(ModelSpec, blocks=blocks, vocab_size=st.integers(1, 64), hidden=st.integers(1, 64), mtp=st.just(0))


def values(field: Any) -> st.SearchStrategy[Any]:
    """Every valid value of one field."""
    return st.one_of(*(_of_type(member, field.metadata) for member in union_members(field.type)))


def _of_type(member: Any, bounds: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if member is types.NoneType:
        return st.none()
    if typing.get_origin(member) is typing.Literal:
        return st.sampled_from(typing.get_args(member))
    if typing.get_origin(member) is tuple:
        item = typing.get_args(member)[0]
        return st.lists(st.one_of(*(_of_type(inner, {}) for inner in union_members(item))), max_size=3)
    if attrs.has(member):
        return _any(member)
    return {
        bool: st.booleans,
        int: lambda: st.integers(bounds.get("minimum", 0), BIG_INT) | st.integers(bounds.get("minimum", 0), 64),
        float: lambda: _floats(**bounds),
        str: lambda: st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(AWKWARD_TEXT),
    }[member]()


AWKWARD_TEXT = (
    *("yes", "null", "~", "1e-5", "1.0", "0x1f", "2026-01-02", "a: b", "- a", "#", "=", "'\""),
    *("a\r\nb", "\x85", "\u2028", "\x00", "中文"),
)
"""Words that a format could read as something else."""


def _floats(
    *, minimum: float | None = None, above: float | None = None, maximum: float | None = None, quiet: bool = False
) -> st.SearchStrategy[float | int]:
    low = above if above is not None else minimum
    floats = st.floats(low, maximum, exclude_min=above is not None, allow_nan=False, allow_infinity=False)
    ints = st.integers(int(low or 0) + 1, int(maximum) if maximum is not None else 10**6)  # written without a point
    return floats | ints


def _heads() -> dict[str, Any]:
    return {
        "kv_heads": st.integers(1, 4),
        "heads": st.integers(1, 4),  # groups, multiplied by kv_heads in `_built`
        "head_dim": st.integers(1, 8).map(lambda half: 2 * half),
    }


def _experts() -> dict[str, Any]:
    return {
        "experts": st.sampled_from((4, 8)),
        "topk": st.integers(1, 4),
        "groups": st.sampled_from((2, 4)),
        "group_topk": st.integers(1, 2),
        "shared_ffn": st.integers(1, 64),
        "capacity_factor": st.floats(0.5, 2.0),
    }


RULES: Mapping[type[Any], Callable[[], dict[str, Any]]] = MappingProxyType(
    {
        Attention: _heads,
        LatentAttention: lambda: {"q_lora_rank": st.integers(1, BIG_INT), "rope_head_dim": st.sampled_from((2, 8))},
        Indexer: lambda: {"head_dim": st.integers(8, BIG_INT)},
        GatedDeltaNet: lambda: {"key_heads": st.integers(1, 4), "value_heads": st.sampled_from((12, 24))},
        Mamba2: lambda: {"heads": st.sampled_from((12, 24)), "groups": st.integers(1, 4)},
        Moe: _experts,
        Block: lambda: {"feed_forward": _any(Mlp) | _any(Moe)},
        Llama3Rope: lambda: {"low_freq_factor": st.floats(0.1, 4.0), "high_freq_factor": st.floats(4.5, 64.0)},
        LongRope: lambda: {
            name: st.tuples(st.floats(1, 9), st.floats(1, 9)) for name in ("short_factors", "long_factors")
        },
        ModelSpec: lambda: {"blocks": st.lists(_any(Repeat), min_size=1, max_size=3)},
        Precision: lambda: {"grads": st.just("fp32"), "masters": st.just("fp32"), "moments": st.just("fp32")},
        FullRecompute: lambda: {"per": st.just("stage"), "stage_layers": st.none(), "modules": st.just(())},
        Dpo: lambda: {"label_smoothing": st.floats(0.0, 0.5)},
        Lora: lambda: {"targets": st.just(("linear_qkv", "linear_fc2"))},
        Comm: lambda: {"overlap_param_gather": st.just(False)},
        Optimizer: lambda: {"min_lr": st.just(0.0)},
        Data: lambda: {"split": st.lists(st.floats(0.001, 1000), min_size=3, max_size=3)},
        Init: lambda: {"checkpoint": st.none()},
        Profile: lambda: {"start": st.integers(0, 9), "end": st.integers(10, 99), "stack": st.just(False)},
    }
)
"""Strategies for the fields that a rule of their spec ties together."""


MIXED = MappingProxyType(
    {
        "topk": 2,
        "normalize_topk": False,
        "topk_scale": 1.0,
        "groups": 1,
        "group_topk": 1,
        "expert_bias": False,
        "zero_experts": 0,
        "device_aux_loss": 0.0,
        "comm_aux_loss": 0.0,
        "nearness": 0.1,
    }
)
"""Of experts chosen by SparseMixer."""


def _built(cls: type[Any], chosen: dict[str, Any]) -> Any:
    if cls is Attention:
        chosen = {**chosen, "heads": chosen["heads"] * chosen["kv_heads"]}
    if cls in (Mlp, Moe) and chosen["activation"] == "bounded_swiglu":
        chosen = {**chosen, "limit": chosen["limit"] or 7.0}
    if cls is Moe and chosen["score"] == "sparsemixer":
        chosen = {**chosen, **MIXED}
    if cls is Moe and chosen["zero_experts"]:
        chosen = {**chosen, "capacity_factor": None, "pad_to_capacity": False}
    elif cls is Moe and chosen["capacity_factor"] is not None:
        chosen = {**chosen, "capacity_factor": min(chosen["capacity_factor"], chosen["experts"] / chosen["topk"])}
    return cls(**chosen)


@functools.cache
def _any(cls: type[Any]) -> st.SearchStrategy[Any]:
    return specs(cls)
