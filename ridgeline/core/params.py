"""The canonical parameter table: every tensor of a model, by name, shape and role.

Names are Megatron-core's, with the layer counted over the whole model and experts over the whole layer. Fused tensors
keep Megatron's layout: ``linear_qkv`` holds, for each key-value head, its query heads then the key and the value;
``linear_fc1`` holds gate, then up.
"""

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.frozen import frozen
from ridgeline.core.model import Attention, Block, FeedForward, Mixer, Mlp, ModelSpec

Role: TypeAlias = Literal[
    "embedding", "head", "norm", "head_norm", "router",
    "qkv", "qkv_bias", "out", "out_bias",
    "gate_up", "gate_up_bias", "down", "down_bias",
]  # fmt: skip


@frozen
class Param:
    """One tensor of the unsharded model.

    Attributes:
        name: Within its layer (``mlp.linear_fc1.weight``) or the model; an expert's holds ``{expert}``.
        shape: Global shape, in elements.
        role: What it does, which decides how it is sharded and whether it decays.
        experts: How many equal tensors this row stands for, one an expert; 0 for a tensor that is no expert's.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    experts: int = 0

    @property
    def elements(self) -> int:
        """Elements of all the tensors of this row."""
        return math.prod(self.shape) * max(1, self.experts)


def block_params(block: Block, hidden: int) -> tuple[Param, ...]:
    """The parameters of one block, named within it.

    Raises:
        PlanError: The block's mixer has no parameter table yet.
    """
    return (
        Param("input_layernorm.weight", (hidden,), "norm"),
        *_mixer_params(block.mixer, hidden),
        Param("pre_mlp_layernorm.weight", (hidden,), "norm"),
        *_feed_forward_params(block.feed_forward, hidden),
    )


def model_params(model: ModelSpec) -> Iterator[tuple[int | None, Param]]:
    """Every parameter in model order, with the layer it belongs to; None before and after the layers."""
    yield None, Param("embedding.word_embeddings.weight", (model.vocab_size, model.hidden), "embedding")
    begin = 0
    for run in model.blocks:
        params = block_params(run.block, model.hidden)
        for layer in range(begin, begin + run.count):
            for param in params:
                yield layer, param
        begin += run.count
    yield None, Param("decoder.final_layernorm.weight", (model.hidden,), "norm")
    if not model.tied_embeddings:
        yield None, Param("output_layer.weight", (model.vocab_size, model.hidden), "head")


def fqn_of(layer: int | None, param: Param, *, expert: int | None = None) -> str:
    """The full name of a parameter.

    Example:
        >>> down = Param("mlp.experts.local_experts.{expert}.linear_fc2.weight", (8, 4), "down", experts=2)
        >>> fqn_of(3, down, expert=1)
        'decoder.layers.3.mlp.experts.local_experts.1.linear_fc2.weight'
    """
    name = param.name if layer is None else f"decoder.layers.{layer}.{param.name}"
    return name.replace("{expert}", str(expert)) if param.experts else name


def num_params(model: ModelSpec) -> int:
    """Parameters in all; a tied head counts once."""
    return sum(param.elements for _, param in model_params(model))


def num_active_params(model: ModelSpec) -> int:
    """Parameters that one token meets: of each MoE layer, ``topk`` experts."""
    total = 0
    for run in model.blocks:
        topk = 1 if isinstance(run.block.feed_forward, Mlp) else run.block.feed_forward.topk
        total += run.count * sum(
            math.prod(param.shape) * (topk if param.experts else 1) for param in block_params(run.block, model.hidden)
        )
    return total + sum(param.elements for layer, param in model_params(model) if layer is None)


def _mixer_params(mixer: Mixer, hidden: int) -> Iterator[Param]:
    if not isinstance(mixer, Attention):
        rule = "has no parameter table yet, so it can be neither planned nor trained"
        raise PlanError(Problem("model.blocks.mixer", mixer.kind, rule, f"use kind={Attention.kind!r}"))
    q_width = mixer.heads * mixer.head_dim
    qkv_width = q_width + 2 * mixer.kv_heads * mixer.head_dim
    yield Param("self_attention.linear_qkv.weight", (qkv_width, hidden), "qkv")
    if mixer.qkv_bias:
        yield Param("self_attention.linear_qkv.bias", (qkv_width,), "qkv_bias")
    if mixer.qk_norm:
        yield Param("self_attention.q_layernorm.weight", (mixer.head_dim,), "head_norm")
        yield Param("self_attention.k_layernorm.weight", (mixer.head_dim,), "head_norm")
    yield Param("self_attention.linear_proj.weight", (hidden, q_width), "out")
    if mixer.out_bias:
        yield Param("self_attention.linear_proj.bias", (hidden,), "out_bias")


def _feed_forward_params(feed_forward: FeedForward, hidden: int) -> Iterator[Param]:
    ffn = feed_forward.ffn_hidden
    if isinstance(feed_forward, Mlp):
        yield Param("mlp.linear_fc1.weight", (2 * ffn, hidden), "gate_up")
        if feed_forward.bias:
            yield Param("mlp.linear_fc1.bias", (2 * ffn,), "gate_up_bias")
        yield Param("mlp.linear_fc2.weight", (hidden, ffn), "down")
        if feed_forward.bias:
            yield Param("mlp.linear_fc2.bias", (hidden,), "down_bias")
        return
    yield Param("mlp.router.weight", (feed_forward.experts, hidden), "router")
    expert = "mlp.experts.local_experts.{expert}."
    yield Param(expert + "linear_fc1.weight", (2 * ffn, hidden), "gate_up", feed_forward.experts)
    yield Param(expert + "linear_fc2.weight", (hidden, ffn), "down", feed_forward.experts)
