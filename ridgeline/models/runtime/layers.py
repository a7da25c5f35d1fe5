"""Blocks as Megatron-core module specs: which module, with which kernel, stands where in a layer."""

import functools
from collections.abc import Mapping

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from ridgeline.core.model import Attention, Block, FeedForward, Mlp, ModelSpec
from ridgeline.models.runtime.modules import (
    BiasedColumnParallelLinear,
    BiasedRowParallelLinear,
    CoreAttention,
    Kernel,
    RmsNorm,
    RotaryAttention,
    SwiGlu,
)

Kernels = Mapping[str, Kernel]


def decoder_spec(model: ModelSpec, layers: tuple[int, ...], kernels: Kernels) -> TransformerBlockSubmodules:
    """The layers of one model chunk, by their index in the model, and the final norm where Megatron-core wants one."""
    blocks = model.layers()
    specs = {block: layer_spec(block, kernels) for block in {blocks[layer] for layer in layers}}
    return TransformerBlockSubmodules(layer_specs=[specs[blocks[layer]] for layer in layers], layer_norm=_norm(kernels))


def layer_spec(block: Block, kernels: Kernels) -> ModuleSpec:
    """One block as a layer of Megatron-core."""
    assert isinstance(block.mixer, Attention)  # lowering refuses all others
    assert block.feed_forward is not None
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=_norm(kernels),
            self_attention=_attention(block.mixer, kernels),
            self_attn_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]  upstream gives the function too
            pre_mlp_layernorm=_norm(kernels),
            mlp=_feed_forward(block.feed_forward, kernels),
            mlp_bda=get_bias_dropout_add,  # pyright: ignore[reportArgumentType]  as above
        ),
    )


def _norm(kernels: Kernels) -> ModuleSpec:
    return ModuleSpec(module=RmsNorm, params={"rms_norm": kernels["rms_norm"]})


def _attention(attention: Attention, kernels: Kernels) -> ModuleSpec:
    head_norm = {"q_layernorm": _norm(kernels), "k_layernorm": _norm(kernels)} if attention.qk_norm else {}
    return ModuleSpec(
        module=RotaryAttention,
        params={"rope": attention.rope, "rotate": kernels["rope"]},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=functools.partial(  # pyright: ignore[reportArgumentType]  upstream's protocol has no __call__
                CoreAttention, window=attention.window, attention=kernels["attention"]
            ),
            linear_proj=BiasedRowParallelLinear if attention.out_bias else RowParallelLinear,
            **head_norm,
        ),
    )


def _feed_forward(feed_forward: FeedForward, kernels: Kernels) -> ModuleSpec:
    activation = ModuleSpec(module=SwiGlu, params={"swiglu": kernels["swiglu"]})
    if isinstance(feed_forward, Mlp):
        return ModuleSpec(
            module=MLP,
            params={"ffn_hidden_size": feed_forward.ffn_hidden},
            submodules=MLPSubmodules(
                linear_fc1=BiasedColumnParallelLinear if feed_forward.bias else ColumnParallelLinear,
                activation_func=activation,
                linear_fc2=BiasedRowParallelLinear if feed_forward.bias else RowParallelLinear,
            ),
        )
    experts = MLPSubmodules(linear_fc1=ColumnParallelLinear, activation_func=activation, linear_fc2=RowParallelLinear)
    return ModuleSpec(
        module=MoELayer, submodules=MoESubmodules(experts=ModuleSpec(module=SequentialMLP, submodules=experts))
    )
