"""Under which key a checkpoint stores each tensor: Megatron-core's own, each layer apart, so that any layout finds it.

    decoder.layers.3.mlp.linear_fc1.weight                                 as it is
    decoder.layers.3.mlp.experts.local_experts.5.linear_fc1.weight         slice 5 of
    decoder.layers.3.mlp.experts.experts.linear_fc1.weight                 a tensor with one dim more, the experts
    optimizer.state.exp_avg.KEY, .exp_avg_sq.KEY, .fp32_param.KEY          what the optimizer keeps of KEY

The optimizer's keys do not say how it was laid out: neither over how many optimizers Megatron-core chained (it has one
more when ep > 1), nor over which dp ranks the distributed one spread it.

Source:
    megatron-core 0.16.1: transformer/transformer_block.py and transformer/moe/experts.py, ``sharded_state_dict`` with
    ``non_homogeneous_layers``; optimizer/optimizer.py, ``Float16OptimizerWithFloat16Params.sharded_state_dict``.
"""

import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import attrs

from ridgeline.checkpoint.boxes import Box, Shape
from ridgeline.core.job import Lora
from ridgeline.core.model import ModelSpec
from ridgeline.core.params import Param, Role, fqn_of, model_params, with_adapters

OptimizerPart: TypeAlias = Literal["fp32_param", "exp_avg", "exp_avg_sq"]

LINEAR: tuple[Role, ...] = ("qkv", "out", "gate_up", "down", "head")

_LOCAL = ".experts.local_experts."
_STACKED = ".experts.experts."


@attrs.frozen
class Stored:
    """Where a tensor of the model lies in a checkpoint: all of ``key``, or one slice of its first dim."""

    key: str
    shape: Shape
    expert: int | None = None


@functools.cache
def params_of(model: ModelSpec) -> Mapping[str, Param]:
    """Every parameter of a model by its full name, each expert's apart, in model order."""
    return MappingProxyType(
        {
            fqn_of(layer, param, expert=expert): param
            for layer, param in model_params(model)
            for expert in (range(param.experts) if param.experts else (None,))
        }
    )


@functools.cache
def adapted_params(model: ModelSpec, adapter: Lora) -> Mapping[str, Param]:
    """As ``params_of``, each adapter's two matrices behind the weight that they stand beside."""
    return MappingProxyType(
        {
            fqn_of(layer, each, expert=expert): each
            for layer, param in model_params(model)
            for expert in (range(param.experts) if param.experts else (None,))
            for each in with_adapters((param,), adapter)
        }
    )


def stored(fqn: str, param: Param) -> Stored:
    """Where the parameter of this full name is stored.

    Example:
        >>> param = Param("mlp.experts.local_experts.{expert}.linear_fc1.weight", (64, 8), "gate_up", experts=16)
        >>> stored("decoder.layers.3.mlp.experts.local_experts.5.linear_fc1.weight", param)
        Stored(key='decoder.layers.3.mlp.experts.experts.linear_fc1.weight', shape=(16, 64, 8), expert=5)
    """
    if not param.experts:
        return Stored(fqn, param.shape)
    layer, _, rest = fqn.partition(_LOCAL)
    expert, _, name = rest.partition(".")
    return Stored(layer + _STACKED + name, (param.experts, *param.shape), int(expert))


def stored_box(place: Stored, box: Box) -> Box:
    """A box of a parameter, seen in the tensor that stores it."""
    return box if place.expert is None else Box((place.expert, *box.offset), (1, *box.shape))


def optimizer_key(part: OptimizerPart, key: str) -> str:
    """Where a part of the optimizer's state of a stored tensor is stored.

    Example:
        >>> optimizer_key("exp_avg", "output_layer.weight")
        'optimizer.state.exp_avg.output_layer.weight'
    """
    return f"optimizer.state.{part}.{key}"


def extra_state_keys(model: ModelSpec) -> Iterator[str]:
    """Keys under which Megatron-core expects the extra state of its linear layers, lest it refuse to load.

    The state is None, unless the layers are Transformer Engine's.
    """
    for fqn, param in params_of(model).items():
        if fqn.endswith(".weight") and param.role in LINEAR:
            place = stored(fqn, param)
            shard = "shard_0_1" if place.expert is None else f"shard_{place.expert}_{param.experts}"
            yield f"{place.key.removesuffix('weight')}_extra_state/{shard}"
    if model.tied_embeddings:
        yield "output_layer._extra_state/shard_0_1"


def rng_key(rank: int, world_size: int) -> str:
    """Where a rank's random streams are stored; spelled as Megatron-core spells a shard of an object."""
    return f"rng_state/shard_{rank}_{world_size}"
