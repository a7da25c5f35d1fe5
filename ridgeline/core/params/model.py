"""The parameters of a block and of a whole model, and how many there are."""

import math
from collections.abc import Iterator

import attrs

from ridgeline.core.model import Block, ModelSpec, Moe, Norm
from ridgeline.core.params.feed_forwards import feed_forward_params
from ridgeline.core.params.mixers import mixer_params
from ridgeline.core.params.table import Param, Place


def block_params(block: Block, model: ModelSpec) -> tuple[Param, ...]:
    """The parameters of one block, named within it."""
    return tuple(_block_params(block, model.hidden, model.norm))


def outer_params(model: ModelSpec) -> Iterator[Param]:
    """The parameters outside of the layers, in model order."""
    place: Place = "both" if model.shares_embedding else "first"
    shape = (model.vocab_size, model.hidden)
    yield Param("embedding.word_embeddings.weight", shape, "embedding", place=place)
    if model.learned_positions:
        shape = (model.max_position, model.hidden)
        yield Param("embedding.position_embeddings.weight", shape, "positions", place="first")
    if model.embedding_norm:
        yield from _norm("embedding.norm", model.hidden, model.norm, place="first")
    yield from _norm("decoder.final_layernorm", model.hidden, model.norm, place="last")
    yield from mtp_params(model)
    if not model.tied_embeddings:
        yield Param("output_layer.weight", (model.vocab_size, model.hidden), "head", place="last")
    if model.head_bias:
        yield Param("output_layer.bias", (model.vocab_size,), "head_bias", place="last")


def mtp_params(model: ModelSpec) -> Iterator[Param]:
    """The parameters of multi-token prediction, beyond embedding and head."""
    for index in range(model.mtp):
        name = f"mtp.layers.{index}."
        for part in ("enorm", "hnorm"):
            yield from _norm(name + part, model.hidden, model.norm, place="last")
        yield Param(name + "eh_proj.weight", (model.hidden, 2 * model.hidden), "column", place="last")
        for param in block_params(model.block_ahead, model):
            yield attrs.evolve(param, name=f"{name}transformer_layer.{param.name}", place="last")
        yield from _norm(name + "final_layernorm", model.hidden, model.norm, place="last")


def model_params(model: ModelSpec) -> Iterator[tuple[int | None, Param]]:
    """Every parameter in model order, with the layer it belongs to; None before and after the layers."""
    outer = tuple(outer_params(model))
    for param in outer:
        if param.place != "last":
            yield None, param
    begin = 0
    for run in model.blocks:
        params = block_params(run.block, model)
        for layer in range(begin, begin + run.count):
            for param in params:
                yield layer, param
        begin += run.count
    for param in outer:
        if param.place == "last":
            yield None, param


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
    layers = sum(run.count * sum(param.elements for param in block_params(run.block, model)) for run in model.blocks)
    return layers + sum(param.elements for param in outer_params(model))


def num_active_params(model: ModelSpec) -> int:
    """Parameters that one token meets: of each MoE layer, ``topk`` experts; multi-token prediction left out.

    Where some choices of the router are no experts, ``topk`` counts what experts get of equal shares, rounded down.
    """
    layers = sum(run.count * _active_elements(run.block, model) for run in model.blocks)
    mtp = sum(param.elements for param in mtp_params(model))
    return layers + sum(param.elements for param in outer_params(model)) - mtp


def _active_elements(block: Block, model: ModelSpec) -> int:
    total = 0
    for param in block_params(block, model):
        moe = block.shortcut if param.name.startswith("shortcut.") else block.feed_forward
        chosen = 1
        if param.experts:
            assert isinstance(moe, Moe)
            chosen = moe.topk * moe.experts // (moe.experts + moe.zero_experts)
        total += math.prod(param.shape) * chosen
    return total


def _block_params(block: Block, hidden: int, norm: Norm) -> Iterator[Param]:
    sandwich = block.norms == "sandwich"
    if block.mixer is not None:
        yield from _norm("norm" if block.mixer.kind == "mamba2" else "input_layernorm", hidden, norm)
        yield from mixer_params(block.mixer, hidden)
        if sandwich:
            yield from _norm("post_self_attn_layernorm", hidden, norm)
    if block.feed_forward is not None:
        yield from _norm("pre_mlp_layernorm", hidden, norm)
        yield from feed_forward_params(block.feed_forward, hidden)
        if sandwich:
            yield from _norm("post_mlp_layernorm", hidden, norm)
    if block.shortcut is not None:
        yield from feed_forward_params(block.shortcut, hidden, prefix="shortcut.")


def _norm(name: str, width: int, norm: Norm, *, place: Place = "layer") -> Iterator[Param]:
    yield Param(f"{name}.weight", (width,), "norm", place=place)
    if norm == "layer":
        yield Param(f"{name}.bias", (width,), "norm_bias", place=place)
