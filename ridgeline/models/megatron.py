"""A job that `check_lowerable` lets pass, in the words of Megatron-core's three configs, as plain data."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, FeedForward, Mlp, ModelSpec, Moe, is_gated
from ridgeline.kernels.capabilities import capabilities_of
from ridgeline.parallel.stages import StageMap, megatron_layout

Value: TypeAlias = str | int | float | bool | tuple["Value", ...] | None
Fields: TypeAlias = tuple[tuple[str, Value], ...]
"""Fields of a config by name; dtypes and functions by torch's name for them."""

DTYPES: Mapping[str, str] = MappingProxyType({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"})
"""Ours to torch's."""


def transformer_fields(job: Job, stages: StageMap) -> Fields:
    """The TransformerConfig of a job."""
    model, layout, precision = job.model, job.layout, job.precision
    dtype = DTYPES[precision.params]
    return (
        ("num_layers", model.num_layers),
        ("hidden_size", model.hidden),
        ("mtp_num_layers", model.mtp or None),
        *_attention_fields(job),
        ("normalization", "RMSNorm"),  # of modules that are not ours, of which there are none
        ("layernorm_epsilon", model.norm_eps),
        ("gated_linear_unit", any(is_gated(part.activation) for part in _feed_forwards(model))),
        ("activation_func", "silu"),  # as above
        ("add_bias_linear", False),
        *_feed_forward_fields(job),
        *_indexer_fields(job),
        # Modules and kernels are ours, see ridgeline.models.runtime.layers.
        ("transformer_impl", "local"),
        ("use_te_activation_func", True),  # upstream's name for "the activation is a module of the spec"
        ("bias_activation_fusion", False),
        ("bias_dropout_fusion", False),
        ("masked_softmax_fusion", False),
        ("apply_rope_fusion", False),
        ("gradient_accumulation_fusion", False),
        ("attention_dropout", 0.0),
        ("hidden_dropout", 0.0),
        # Initial weights are ours, see ridgeline.models.runtime.initial.
        ("perform_initialization", False),
        ("tensor_model_parallel_size", layout.tp),
        ("pipeline_model_parallel_size", layout.pp),
        ("virtual_pipeline_model_parallel_size", layout.chunks if layout.chunks > 1 else None),
        # In a loop, whatever the placement: upstream numbers layers by it, and modules are told their part otherwise.
        ("pipeline_model_parallel_layout", megatron_layout(stages) if layout.pp > 1 else None),
        ("microbatch_group_size_per_vp_stage", layout.microbatch_group_size or layout.pp),
        *_context_fields(layout),
        ("expert_model_parallel_size", layout.ep),
        ("expert_tensor_parallel_size", layout.etp),
        ("sequence_parallel", layout.sp),
        ("overlap_p2p_comm", job.comm.p2p == "overlapped"),
        ("batch_p2p_comm", job.comm.p2p == "batched"),
        # gloo reads a tensor after the call that sends it; only streams order that with giving its memory back.
        ("deallocate_pipeline_outputs", capabilities_of(job.cluster.chip.device).streams),
        ("calculate_per_token_loss", job.objective.per_token),
        ("params_dtype", dtype),
        ("pipeline_dtype", dtype),
        ("bf16", precision.params == "bf16"),
        *_recompute_fields(job),
    )


def ddp_fields(job: Job) -> Fields:
    """The DistributedDataParallelConfig of a job."""
    return (
        ("grad_reduce_in_fp32", job.precision.grads == "fp32"),
        ("overlap_grad_reduce", job.comm.overlap_grad_reduce),
        ("overlap_param_gather", job.comm.overlap_param_gather),
        ("use_distributed_optimizer", job.memory.distributed_optimizer),
    )


def optimizer_fields(job: Job) -> Fields:
    """The OptimizerConfig of a job."""
    adam = job.optimizer
    return (
        ("optimizer", "adam"),
        ("lr", adam.lr),
        ("min_lr", adam.min_lr),
        ("weight_decay", adam.weight_decay),
        ("adam_beta1", adam.beta1),
        ("adam_beta2", adam.beta2),
        ("adam_eps", adam.eps),
        ("clip_grad", adam.clip_grad),
        ("bf16", job.precision.params == "bf16"),
        ("params_dtype", DTYPES[job.precision.params]),
        ("use_distributed_optimizer", job.memory.distributed_optimizer),
        ("overlap_param_gather", job.comm.overlap_param_gather),
    )


def _context_fields(layout: Layout) -> Fields:
    if layout.cp == 1:
        return (("context_parallel_size", 1),)
    return (
        ("context_parallel_size", layout.cp),
        ("cp_algorithm", layout.cp_algorithm),
        ("repeat_kv", layout.repeat_kv),
    )


def _feed_forwards(model: ModelSpec) -> list[FeedForward]:
    return [block.feed_forward for block in model.layers() if block.feed_forward is not None]


def _attention_fields(job: Job) -> Fields:
    """Of the layers' attention, whose modules hold their own sizes, see ridgeline.models.runtime.attention."""
    mixers = [block.mixer for block in job.model.kinds]
    normed = [mixer for mixer in mixers if isinstance(mixer, Attention) and mixer.qk_norm]
    return (
        ("num_attention_heads", job.layout.tp),  # read by no module of ours
        # Upstream sums the gradients of these norms over tp, which hold apart heads where one norm is over all.
        ("qk_layernorm", any(mixer.qk_norm_over == "head" for mixer in normed)),
    )


def _indexer_fields(job: Job) -> Fields:
    return (("dsa_indexer_loss_coeff", job.objective.indexer_loss),) if job.model.indexers else ()


def _feed_forward_fields(job: Job) -> Fields:
    feed_forwards = _feed_forwards(job.model)
    moe = next(iter(job.model.moes), None)
    width = next((member.ffn_hidden for member in feed_forwards if isinstance(member, Mlp)), None)
    if moe is None:
        return (("ffn_hidden_size", width),)
    is_moe = tuple(int(isinstance(block.feed_forward, Moe)) for block in job.model.layers())
    return (
        ("ffn_hidden_size", width or moe.ffn_hidden),
        ("num_moe_experts", moe.experts),
        ("moe_ffn_hidden_size", moe.ffn_hidden),
        ("moe_layer_freq", 1 if all(is_moe) else is_moe),
        ("moe_router_topk", moe.topk),
        # The router is ours, see ridgeline.models.runtime.router; of it upstream reads no more than this.
        ("moe_router_dtype", "fp32"),
        ("moe_router_pre_softmax", moe.topk == 1),  # it refuses one choice without
        ("moe_router_load_balancing_type", "none"),
        ("moe_token_dispatcher_type", "allgather" if job.comm.moe_dispatcher == "allgather" else "alltoall"),
        # Its dispatchers are ours too, see ridgeline.models.runtime.dispatch.
        ("moe_dispatcher", job.comm.moe_dispatcher),
        ("moe_overlap", job.comm.moe_overlap),
        ("moe_grouped_gemm", False),
        ("moe_shared_expert_intermediate_size", moe.shared_ffn),
        ("moe_shared_expert_gate", moe.shared_gate),
        ("moe_expert_capacity_factor", moe.capacity_factor),
        ("moe_pad_expert_input_to_capacity", moe.pad_to_capacity),
    )


def _recompute_fields(job: Job) -> Fields:
    match job.memory.recompute:
        case SelectiveRecompute(modules=modules):
            return (("recompute_granularity", "selective"), ("recompute_modules", modules))
        case FullRecompute(method=method, num_layers=num_layers):
            return (
                ("recompute_granularity", "full"),
                ("recompute_method", method),
                ("recompute_num_layers", num_layers),
            )
        case None:
            return ()
