"""A job in the words of Megatron-core's three configs, as plain data; what they have no words for is refused."""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs

from ridgeline.core.errors import LoweringError
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import Attention, Mlp, ModelSpec, Moe
from ridgeline.kernels.capabilities import capabilities_of
from ridgeline.parallel.stages import StageMap, megatron_layout

Value: TypeAlias = str | int | float | bool | tuple["Value", ...] | None
Fields: TypeAlias = tuple[tuple[str, Value], ...]
"""Fields of a config by name; dtypes and functions by torch's name for them."""

DTYPES: Mapping[str, str] = MappingProxyType({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"})
"""Ours to torch's."""

UNIFORM: Mapping[type, tuple[str, ...]] = MappingProxyType(
    {
        Attention: ("mixer", "heads", "kv_heads", "head_dim", "qkv_bias", "qk_norm"),
        Mlp: ("feed_forward", "ffn_hidden"),
        Moe: ("feed_forward", "experts", "topk", "ffn_hidden", "normalize_topk", "aux_loss", "z_loss"),
    }
)
"""Where a kind of part stands in a block, and what Megatron-core says once for all layers that hold one."""

RUNS: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "precision.params": ("bf16", "fp32"),
        "precision.grads": ("fp32", "bf16"),
        "precision.masters": ("fp32",),
        "precision.moments": ("fp32",),
        "memory.swap_optimizer": (False,),
        "memory.swap_attention": (False,),
        "memory.plain": ((),),
        "memory.pads_values": (False,),
        "memory.loss": ("in_place",),
        "memory.loss_chunk": (None,),
        "memory.fused_accumulation": (False,),
        "comm.moe_fb_overlap": (False,),
        "comm.tp_overlap": ("none",),
        "optimizer.kernel": ("torch",),
        "objective.kind": ("pretraining",),
        "adapter": (None,),
    }
)
"""What this runtime can do of fields that a plan understands whole."""


SCHEDULES = ("1f1b", "interleaved_1f1b")
"""What Megatron-core runs."""


def check_lowerable(job: Job) -> None:
    """Refuse what the plan allows and this runtime cannot do yet.

    Raises:
        LoweringError: A line for each.
    """
    if faults := lowering_faults(job):
        raise LoweringError("\n".join(faults))


def lowering_faults(job: Job) -> tuple[str, ...]:
    """What of a job this runtime cannot do yet, a sentence each; empty when it runs it."""
    return tuple(_faults(job))


def transformer_fields(job: Job, stages: StageMap) -> Fields:
    """The TransformerConfig of a job that `check_lowerable` lets pass."""
    model, layout, precision = job.model, job.layout, job.precision
    attention = next(block.mixer for block in model.layers() if isinstance(block.mixer, Attention))
    dtype = DTYPES[precision.params]
    overlapped = layout.vpp > 1 and job.comm.p2p == "overlapped"
    return (
        ("num_layers", model.num_layers),
        ("hidden_size", model.hidden),
        ("num_attention_heads", attention.heads),
        ("num_query_groups", attention.kv_heads),
        ("kv_channels", attention.head_dim),
        ("add_qkv_bias", attention.qkv_bias),
        ("qk_layernorm", attention.qk_norm),
        ("normalization", "RMSNorm"),
        ("layernorm_epsilon", model.norm_eps),
        ("gated_linear_unit", True),
        ("activation_func", "silu"),
        ("add_bias_linear", False),
        *_feed_forward_fields(job),
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
        ("virtual_pipeline_model_parallel_size", layout.vpp if layout.vpp > 1 else None),
        ("pipeline_model_parallel_layout", megatron_layout(stages) if layout.pp > 1 else None),
        ("microbatch_group_size_per_vp_stage", layout.microbatch_group_size or layout.pp),
        ("context_parallel_size", layout.cp),
        ("expert_model_parallel_size", layout.ep),
        ("expert_tensor_parallel_size", layout.etp),
        ("sequence_parallel", layout.sp),
        ("overlap_p2p_comm", overlapped),
        ("batch_p2p_comm", not overlapped),
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


def _faults(job: Job) -> Iterator[str]:
    if job.layout.cp > 1:
        yield f"layout.cp={job.layout.cp}: the runtime's attention sees its own part of the sequence only; use 1"
    if job.layout.schedule_name not in SCHEDULES:
        usual = " or ".join(map(repr, SCHEDULES))
        yield f"layout.schedule={job.layout.schedule!r}: is planned only, nothing runs it yet; use {usual}"
    for path, able in RUNS.items():
        value = attrgetter(path)(job)
        if value not in able:
            told = getattr(value, "kind", value)
            yield f"{path}={told!r}: is planned only, nothing runs it yet; use {' or '.join(map(repr, able))}"
    if dropout := getattr(job.objective, "dropout", 0.0):
        yield f"objective.dropout={dropout}: is planned only, training runs without; use 0.0"
    yield from _recompute_faults(job)
    if job.model.mtp:
        yield f"model.mtp={job.model.mtp}: multi-token prediction has no lowering yet; use 0"
    blocks = job.model.layers()
    for block in dict.fromkeys(blocks):
        if not isinstance(block.mixer, Attention):
            kind = block.mixer.kind if block.mixer else None
            yield f"model.blocks.mixer={kind!r}: has no lowering yet; use kind='attention'"
        if block.feed_forward is None:
            yield "model.blocks.feed_forward=None: has no lowering yet; use kind='mlp'"
    yield from dict.fromkeys(_unbuilt(job.model))
    for kind, (place, *names) in UNIFORM.items():
        parts = [part for block in blocks if isinstance(part := getattr(block, place), kind)]
        for name in names:
            values = sorted({getattr(part, name) for part in parts})
            if len(values) > 1:
                yield f"model.blocks.{place}.{name}={values}: Megatron-core has one for all layers; use one value"


def _recompute_faults(job: Job) -> Iterator[str]:
    match job.memory.recompute:
        case SelectiveRecompute(modules=modules, num_layers=num_layers):
            if num_layers is not None:
                yield f"memory.recompute.num_layers={num_layers}: parts are recomputed in all layers; leave it out"
        case FullRecompute(per=per, stage_layers=stage_layers, modules=modules):
            if per != "stage" or stage_layers is not None:
                yield "memory.recompute: every stage recomputes as many layers; leave per and stage_layers out"
            if modules:
                yield f"memory.recompute.modules={modules}: beside whole layers nothing is recomputed; leave them out"
        case None:
            modules = ()
    if "activation" in modules:
        yield "memory.recompute.modules='activation': is planned only, nothing runs it yet; use 'mlp' or 'moe'"


def _unbuilt(model: ModelSpec) -> Iterator[str]:
    """Traits that the runtime's modules do not know."""
    yield from _traits(model, "model")
    for run in model.blocks:
        yield from _traits(run.block, "model.blocks")
        for place in ("mixer", "feed_forward"):
            part = getattr(run.block, place)
            if isinstance(part, (Attention, Mlp, Moe)):
                yield from _traits(part, f"model.blocks.{place}")
                if isinstance(part, (Mlp, Moe)) and part.activation != "swiglu":
                    rule = "has no lowering yet; use 'swiglu'"
                    yield f"model.blocks.{place}.activation={part.activation!r}: {rule}"
        rope = run.block.mixer.rope if isinstance(run.block.mixer, Attention) else None
        if rope is not None:
            yield from _traits(rope, "model.blocks.mixer.rope")
            if rope.scaling is not None and rope.scaling.kind == "longrope":
                yield "model.blocks.mixer.rope.scaling.kind='longrope': has no lowering yet; use another"
            elif rope.scaling is not None:
                yield from _traits(rope.scaling, "model.blocks.mixer.rope.scaling")


def _traits(spec: Any, path: str) -> Iterator[str]:
    for field in attrs.fields(type(spec)):
        value = getattr(spec, field.name)
        if "quiet" in field.metadata and value != field.default:
            shown = getattr(value, "kind", value)
            yield f"{path}.{field.name}={shown!r}: has no lowering yet; leave it at {field.default!r}"


def _feed_forward_fields(job: Job) -> Fields:
    feed_forwards = [block.feed_forward for block in job.model.layers()]
    moe = next((member for member in feed_forwards if isinstance(member, Moe)), None)
    width = next((member.ffn_hidden for member in feed_forwards if isinstance(member, Mlp)), None)
    if moe is None:
        return (("ffn_hidden_size", width),)
    is_moe = tuple(int(isinstance(member, Moe)) for member in feed_forwards)
    # Under a loss per token, upstream weighs a router's losses by the tokens of one tp rank, though all tp ranks add up
    # to their gradients, which would shrink with tp (moe/router.py, `attach_and_log_load_balancing_loss`).
    router_scale = job.layout.tp if job.objective.per_token else 1
    return (
        ("ffn_hidden_size", width or moe.ffn_hidden),
        ("num_moe_experts", moe.experts),
        ("moe_ffn_hidden_size", moe.ffn_hidden),
        ("moe_layer_freq", 1 if all(is_moe) else is_moe),
        ("moe_router_topk", moe.topk),
        ("moe_router_score_function", "softmax"),
        ("moe_router_pre_softmax", not moe.normalize_topk),
        ("moe_router_dtype", "fp32"),
        ("moe_router_load_balancing_type", "aux_loss" if moe.aux_loss else "none"),
        ("moe_aux_loss_coeff", moe.aux_loss * router_scale),
        ("moe_z_loss_coeff", moe.z_loss * router_scale or None),
        ("moe_token_dispatcher_type", job.comm.moe_dispatcher),
        ("moe_grouped_gemm", False),
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
