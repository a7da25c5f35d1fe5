"""Blocks as Megatron-core module specs: which module, with which kernel, stands where in a layer."""

from functools import partial
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from ridgeline.core.model import (
    Attention,
    Block,
    FeedForward,
    GatedDeltaNet,
    Indexer,
    LatentAttention,
    Mamba2,
    Mixer,
    Mlp,
    ModelSpec,
    Norm,
)
from ridgeline.kernels.model_ops import has_modified_scores
from ridgeline.models.runtime.activations import activation_spec
from ridgeline.models.runtime.all_heads_norm import AllHeadsNorm
from ridgeline.models.runtime.attention import CoreAttention, RotaryAttention
from ridgeline.models.runtime.delta_net import DeltaNet
from ridgeline.models.runtime.experts import ExpertLayer, ShortcutLayer
from ridgeline.models.runtime.grouped_experts import ColumnWeight, GroupedExperts, RowWeight
from ridgeline.models.runtime.handing import HandingLayer
from ridgeline.models.runtime.jitter import JitteredExpertLayer
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.latent_attention import LatentSelfAttention, latent_scale
from ridgeline.models.runtime.linears import (
    BiasedColumnParallelLinear,
    BiasedExpertRowParallelLinear,
    BiasedRowParallelLinear,
)
from ridgeline.models.runtime.mamba import MambaLayer
from ridgeline.models.runtime.modified_attention import ModifiedCoreAttention
from ridgeline.models.runtime.norms import norm_spec
from ridgeline.models.runtime.residual import SandwichLayer, scaled_add
from ridgeline.models.runtime.router import ExpertRouter
from ridgeline.models.runtime.shared_kv import SharedKvAttention, no_projection
from ridgeline.models.runtime.sparse_attention import SparseCoreAttention, SparseLatentAttention


def decoder_spec(model: ModelSpec, layers: tuple[int, ...], kernels: Kernels) -> TransformerBlockSubmodules:
    """The layers of one model chunk, by their index in the model, and the final norm where Megatron-core wants one."""
    blocks = model.layers()
    specs = {block: layer_spec(block, model, kernels) for block in {blocks[layer] for layer in layers}}
    return TransformerBlockSubmodules(
        layer_specs=[specs[blocks[layer]] for layer in layers], layer_norm=norm_spec(model.norm, kernels)
    )


def layer_spec(block: Block, model: ModelSpec, kernels: Kernels) -> ModuleSpec:
    """One block as a layer of Megatron-core, where a part that is absent passes the stream on."""
    norm = norm_spec(model.norm, kernels)
    if isinstance(block.mixer, Mamba2):
        params = {"mixer": block.mixer, "norm": norm, "scale": model.residual_scale, "kernels": kernels}
        return ModuleSpec(module=MambaLayer, params=params)
    add = scaled_add(model.residual_scale) if model.residual_scale != 1.0 else get_bias_dropout_add
    parts: dict[str, Any] = {}
    if block.mixer is not None:
        parts |= {
            "input_layernorm": norm,
            "self_attention": _mixer(block.mixer, model.norm, kernels),
            "self_attn_bda": add,
        }
    if block.feed_forward is not None:
        parts |= {"pre_mlp_layernorm": norm, "mlp": _feed_forward(block.feed_forward, kernels), "mlp_bda": add}
    submodules = TransformerLayerSubmodules(**parts)
    if any(other.shortcut for other in model.layers()):
        experts = None if block.shortcut is None else _feed_forward(block.shortcut, kernels)
        return ModuleSpec(module=ShortcutLayer, params={"experts": experts}, submodules=submodules)
    if model.shares_between_layers:
        return ModuleSpec(module=HandingLayer, submodules=submodules)
    if block.norms == "sandwich":
        params = {"norm": norm, "scale": model.residual_scale}
        return ModuleSpec(module=SandwichLayer, params=params, submodules=submodules)
    return ModuleSpec(module=TransformerLayer, submodules=submodules)


def _mixer(mixer: Mixer, norm: Norm, kernels: Kernels) -> ModuleSpec:
    latent_norm = norm_spec(norm, kernels)
    match mixer:
        case Attention():
            return _attention(mixer, norm, kernels)
        case LatentAttention(indexer=Indexer()):
            core = partial(SparseCoreAttention, mixer=mixer, kernels=kernels)
            params = {"mixer": mixer, "norm": latent_norm, "core_attention": core, "rotate": kernels["rope"]}
            return ModuleSpec(module=SparseLatentAttention, params=params)
        case LatentAttention():
            core = partial(CoreAttention, scale=latent_scale(mixer), window=None, kernels=kernels)
            params = {"mixer": mixer, "norm": latent_norm, "core_attention": core, "rotate": kernels["rope"]}
            return ModuleSpec(module=LatentSelfAttention, params=params)
        case GatedDeltaNet():
            return ModuleSpec(module=DeltaNet, params={"mixer": mixer, "kernels": kernels})
        case _:
            raise AssertionError(mixer)  # lowering refuses all others


def _attention(mixer: Attention, norm: Norm, kernels: Kernels) -> ModuleSpec:
    of_head = norm_spec(norm, kernels, later=mixer.qk_norm_after_rope)
    qk_norm = {"q_layernorm": of_head, "k_layernorm": of_head} if mixer.qk_norm else {}
    if mixer.qk_norm and mixer.qk_norm_over == "layer":
        qk_norm = {
            "q_layernorm": ModuleSpec(module=AllHeadsNorm, params={"heads": mixer.heads}),
            "k_layernorm": ModuleSpec(module=AllHeadsNorm, params={"heads": mixer.kv_heads}),
        }
    scale = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
    if has_modified_scores(mixer):
        core = partial(ModifiedCoreAttention, mixer=mixer, scale=scale, flash_attention=kernels["flash_attention"])
    else:
        core = partial(CoreAttention, scale=scale, window=mixer.window, kernels=kernels)
    return ModuleSpec(
        module=SharedKvAttention if mixer.shares_kv else RotaryAttention,
        params={"mixer": mixer, "rotate": kernels.get("rope")},
        submodules=SelfAttentionSubmodules(
            linear_qkv=no_projection if mixer.shares_kv else ColumnParallelLinear,  # pyright: ignore[reportArgumentType]
            core_attention=core,  # pyright: ignore[reportArgumentType]  upstream's protocol has no __call__
            linear_proj=BiasedRowParallelLinear if mixer.out_bias else RowParallelLinear,
            **qk_norm,
        ),
    )


def _feed_forward(feed_forward: FeedForward, kernels: Kernels) -> ModuleSpec:
    activation = activation_spec(feed_forward.activation, feed_forward.limit, kernels)
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
    if feed_forward.bias:
        biased = MLPSubmodules(
            linear_fc1=BiasedColumnParallelLinear,
            activation_func=activation,
            linear_fc2=BiasedExpertRowParallelLinear,
        )
        experts = ModuleSpec(module=SequentialMLP, submodules=biased)
    else:
        grouped = MLPSubmodules(linear_fc1=ColumnWeight, activation_func=activation, linear_fc2=RowWeight)
        product = {"grouped_matmul": kernels["grouped_matmul"]}
        experts = ModuleSpec(module=GroupedExperts, params=product, submodules=grouped)
    shared = None
    if feed_forward.shared_ffn is not None:
        own = activation_spec(feed_forward.activation, feed_forward.shared_limit, kernels)
        products = MLPSubmodules(linear_fc1=ColumnParallelLinear, activation_func=own, linear_fc2=RowParallelLinear)
        shared = ModuleSpec(module=SharedExpertMLP, submodules=products)
    module, params = ExpertLayer, {}
    if feed_forward.input_jitter:
        module, params = JitteredExpertLayer, {"jitter": feed_forward.input_jitter}
    sparsemixer = kernels["sparsemixer"] if feed_forward.score == "sparsemixer" else None
    return ModuleSpec(
        module=module,
        params=params,
        submodules=MoESubmodules(
            experts=experts,
            shared_experts=shared,  # pyright: ignore[reportArgumentType]  None where there are none
            router=partial(ExpertRouter, moe=feed_forward, sparsemixer=sparsemixer),
        ),
    )
