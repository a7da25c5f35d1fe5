"""Which function stands for which op."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ridgeline.kernels.npu.virtual.emulations import (
    activations,
    attention,
    collectives,
    losses,
    matmuls,
    moe,
    norms,
    optimizers,
    sparse,
    torch_ops,
)

EMULATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "npu::npu_add_rms_norm": norms.add_rms_norm,
        "npu::npu_all_gather_base_mm": collectives.all_gather_base_mm,
        "npu::npu_apply_adam_w": optimizers.apply_adam_w,
        "npu::npu_clipped_swiglu": activations.clipped_swiglu,
        "npu::npu_cross_entropy_loss": losses.cross_entropy_loss,
        "npu::npu_cross_entropy_loss_backward": losses.cross_entropy_loss_backward,
        "npu::_npu_dtype_cast": torch_ops.dtype_cast,
        "npu::_npu_dtype_cast_backward": torch_ops.dtype_cast,
        "npu::get_npu_format": torch_ops.get_npu_format,
        "npu::npu_format_cast": torch_ops.format_cast,
        "npu::npu_fusion_attention": attention.fusion_attention,
        "npu::npu_fusion_attention_grad": attention.fusion_attention_grad,
        "npu::npu_fusion_attention_grad_v2": attention.fusion_attention_grad_v2,
        "npu::npu_fusion_attention_v2": attention.fusion_attention_v2,
        "npu::npu_gather_backward": torch_ops.gather_backward,
        "npu::npu_geglu": activations.geglu,
        "npu::npu_geglu_grad": activations.geglu_grad,
        "npu::npu_grouped_matmul": matmuls.grouped_matmul,
        "npu::npu_grouped_matmul_add_": matmuls.grouped_matmul_add_,
        "npu::npu_lightning_indexer": sparse.lightning_indexer,
        "npu::npu_lightning_indexer_grad": sparse.lightning_indexer_grad,
        "npu::npu_mm_all_reduce_base": collectives.mm_all_reduce_base,
        "npu::npu_mm_reduce_scatter_base": collectives.mm_reduce_scatter_base,
        "npu::npu_moe_gating_top_k": moe.moe_gating_top_k,
        "npu::npu_moe_gating_top_k_backward": moe.moe_gating_top_k_backward,
        "npu::npu_moe_gating_top_k_softmax": moe.moe_gating_top_k_softmax,
        "npu::npu_moe_token_permute": moe.token_permute,
        "npu::npu_moe_token_permute_grad_v2": moe.token_permute_grad_v2,
        "npu::npu_moe_token_permute_with_routing_map": moe.permute_with_routing_map,
        "npu::npu_moe_token_permute_with_routing_map_grad": moe.permute_with_routing_map_grad,
        "npu::npu_moe_token_unpermute": moe.token_unpermute,
        "npu::_npu_moe_token_unpermute": moe.token_unpermute_saving,
        "npu::npu_moe_token_unpermute_grad_v2": moe.token_unpermute_grad_v2,
        "npu::npu_moe_token_unpermute_with_routing_map": moe.unpermute_with_routing_map,
        "npu::_npu_moe_token_unpermute_with_routing_map": moe.unpermute_with_routing_map_saving,
        "npu::npu_moe_token_unpermute_with_routing_map_grad": moe.unpermute_with_routing_map_grad,
        "npu::npu_rms_norm": norms.rms_norm,
        "npu::npu_rms_norm_backward": norms.rms_norm_backward,
        "npu::npu_rotary_mul": activations.rotary_mul,
        "npu::npu_rotary_mul_backward": activations.rotary_mul_backward,
        "npu::npu_scaled_masked_softmax": norms.scaled_masked_softmax,
        "npu::npu_scaled_masked_softmax_backward": norms.scaled_masked_softmax_backward,
        "npu::npu_sparse_flash_attention": sparse.sparse_flash_attention,
        "npu::npu_sparse_flash_attention_grad": sparse.sparse_flash_attention_grad,
        "npu::npu_swiglu": activations.swiglu,
        "npu::npu_swiglu_backward": activations.swiglu_backward,
    }
)
