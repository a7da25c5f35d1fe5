"""One rank's program: all that its process builds and does, as plain data that can be printed, compared and sent."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs

from ridgeline.core.errors import LoweringError
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import Attention, Mlp, Moe
from ridgeline.kernels.capabilities import capabilities_of
from ridgeline.kernels.select import select
from ridgeline.kernels.table import KERNELS
from ridgeline.parallel.mesh import PROCESS_GROUPS, ExpertCoords, RankCoords, expert_coords, group_of, rank_coords
from ridgeline.parallel.plan import Plan
from ridgeline.parallel.shards import Box, LocalParam, padded_vocab, rank_params, slices_of
from ridgeline.parallel.stages import StageMap, megatron_layout

Value: TypeAlias = str | int | float | bool | tuple["Value", ...] | None
Fields: TypeAlias = tuple[tuple[str, Value], ...]
"""Fields of one of Megatron-core's configs by name; dtypes and functions by torch's name for them."""


@attrs.frozen(kw_only=True)
class Chunk:
    """One stage of the model, as one rank holds it.

    Attributes:
        stage: 0 .. pp*vpp-1, in model order.
        layers: Indices in the model of its layers, noops left out.
        pre_process: It holds the embedding.
        post_process: It holds the final norm and the head.
    """

    stage: int
    layers: tuple[int, ...]
    pre_process: bool
    post_process: bool


@attrs.frozen(kw_only=True)
class DataSlice:
    """Which samples of a step the rank reads.

    A step reads ``gbs`` samples after those already consumed; microbatch ``m`` of a dp rank starts at
    ``consumed + (m * dp + dp_rank) * mbs`` and holds ``mbs`` of them, as Megatron-LM's samplers do.
    """

    dp_rank: int
    dp: int
    mbs: int
    num_microbatches: int
    seq_len: int

    def samples(self, consumed: int) -> Iterator[range]:
        """The samples of each microbatch of the step that starts after ``consumed`` samples.

        Example:
            >>> slice = DataSlice(dp_rank=1, dp=2, mbs=2, num_microbatches=2, seq_len=8)
            >>> list(slice.samples(100))
            [range(102, 104), range(106, 108)]
        """
        for microbatch in range(self.num_microbatches):
            begin = consumed + (microbatch * self.dp + self.dp_rank) * self.mbs
            yield range(begin, begin + self.mbs)


@attrs.frozen(kw_only=True)
class Owned:
    """A parameter of this rank, and where it lies in the whole: the boxes that make it, one after the other."""

    local: LocalParam
    boxes: tuple[Box, ...]


@attrs.frozen(kw_only=True)
class RankProgram:
    """All that one rank builds and does.

    Attributes:
        job: What every rank agrees on.
        rank: Global rank, 0 .. world_size-1.
        coords, expert_coords: Where it sits.
        groups: The ranks of each of its process groups, by Megatron-core's name for the group.
        chunks: Its stages of the model, in the order of its chunks.
        padded_vocab: Rows of the embedding over all ranks.
        num_pads: Of its own rows of the vocabulary, the last ones that are padding.
        params: Every parameter it holds.
        kernels: The kernel chosen for each op.
        transformer, ddp, optimizer: Fields of Megatron-core's three configs.
        data: The samples it reads.
    """

    job: Job
    rank: int
    coords: RankCoords
    expert_coords: ExpertCoords
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    chunks: tuple[Chunk, ...]
    padded_vocab: int
    num_pads: int
    params: tuple[Owned, ...]
    kernels: tuple[tuple[str, str], ...]
    transformer: Fields
    ddp: Fields
    optimizer: Fields
    data: DataSlice


def lower(plan: Plan, rank: int) -> RankProgram:
    """Lower a plan to what one rank builds and does.

    Args:
        plan: Of all ranks.
        rank: Global rank, 0 <= rank < world_size.

    Raises:
        LoweringError: The plan holds what this runtime cannot do; all of it is named.
        SpecError: No such rank.
    """
    job, mesh = plan.job, plan.mesh
    check_lowerable(job)
    coords = rank_coords(rank, mesh)
    vocab = padded_vocab(job.model.vocab_size, job.layout)
    local_vocab = vocab // mesh.tp
    return RankProgram(
        job=job,
        rank=rank,
        coords=coords,
        expert_coords=expert_coords(rank, mesh),
        groups=tuple((name, group_of(rank, mesh, axes)) for name, axes in PROCESS_GROUPS.items()),
        chunks=_chunks(plan.stages, coords.pp_rank),
        padded_vocab=vocab,
        num_pads=min(local_vocab, max(0, (coords.tp_rank + 1) * local_vocab - job.model.vocab_size)),
        params=tuple(Owned(local=p, boxes=slices_of(p.shard, rank, mesh)) for p in rank_params(plan, rank)),
        kernels=_kernels(job),
        transformer=transformer_fields(job, plan.stages),
        ddp=ddp_fields(job),
        optimizer=optimizer_fields(job),
        data=DataSlice(
            dp_rank=coords.dp_rank,
            dp=mesh.dp,
            mbs=job.batch.mbs,
            num_microbatches=job.num_microbatches,
            seq_len=job.batch.seq_len,
        ),
    )


def _kernels(job: Job) -> tuple[tuple[str, str], ...]:
    device, dtype = job.cluster.chip.device, DTYPES[job.precision.params]
    return tuple((op, select(op, device=device, dtype=dtype).kernel) for op in KERNELS)


def _chunks(stages: StageMap, pp_rank: int) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(stage=s, layers=stages.layers[s], pre_process=s == 0, post_process=s == stages.num_stages - 1)
        for s in range(pp_rank, stages.num_stages, stages.pp)
    )


def check_lowerable(job: Job) -> None:
    """Refuse what the plan allows and this runtime cannot do yet.

    Raises:
        LoweringError: A line for each.
    """
    if faults := tuple(_faults(job)):
        raise LoweringError("\n".join(faults))


def _faults(job: Job) -> Iterator[str]:
    if job.layout.cp > 1:
        yield f"layout.cp={job.layout.cp}: the runtime's attention sees its own part of the sequence only; use 1"
    if job.model.mtp:
        yield f"model.mtp={job.model.mtp}: multi-token prediction has no lowering yet; use 0"
    blocks = job.model.layers()
    for kind in dict.fromkeys(block.mixer.kind for block in blocks if not isinstance(block.mixer, Attention)):
        yield f"model.blocks.mixer={kind!r}: has no lowering yet; use kind='attention'"
    parts: Mapping[str, tuple[type, tuple[str, ...]]] = {
        "mixer": (Attention, ("heads", "kv_heads", "head_dim", "qkv_bias", "qk_norm")),
        "feed_forward": (Moe, ("experts", "topk", "ffn_hidden", "normalize_topk", "aux_loss", "z_loss")),
    }
    for part, (kind, names) in parts.items():
        found = [member for block in blocks if isinstance(member := getattr(block, part), kind)]
        for name in names:
            if len(values := sorted({getattr(member, name) for member in found})) > 1:
                yield f"model.blocks.{part}.{name}={values}: Megatron-core has one for all layers; use one value"


def transformer_fields(job: Job, stages: StageMap) -> Fields:
    """Megatron-core's TransformerConfig for a job whose blocks it can hold, without what only a rank knows."""
    model, layout, precision = job.model, job.layout, job.precision
    attention, mlp, moe = _uniform_parts(job)
    dtype = DTYPES[precision.params]
    interleaved = layout.vpp > 1
    return (
        ("num_layers", model.num_layers),
        ("hidden_size", model.hidden),
        ("num_attention_heads", attention.heads),
        ("num_query_groups", attention.kv_heads),
        ("kv_channels", attention.head_dim),
        ("ffn_hidden_size", mlp.ffn_hidden if mlp else moe.ffn_hidden if moe else None),
        ("add_qkv_bias", attention.qkv_bias),
        ("qk_layernorm", attention.qk_norm),
        ("normalization", "RMSNorm"),
        ("layernorm_epsilon", model.norm_eps),
        ("gated_linear_unit", True),
        ("activation_func", "silu"),
        ("add_bias_linear", False),
        *_moe_fields(job, moe),
        # Modules and kernels are ours: see ridgeline.models.runtime.layers.
        ("transformer_impl", "local"),
        ("use_te_activation_func", True),  # Megatron-core's name for "the activation is a module of the spec"
        ("bias_activation_fusion", False),
        ("bias_dropout_fusion", False),
        ("masked_softmax_fusion", False),
        ("apply_rope_fusion", False),
        ("gradient_accumulation_fusion", False),
        ("attention_dropout", 0.0),
        ("hidden_dropout", 0.0),
        # Initial weights are ours: see ridgeline.models.runtime.initial.
        ("perform_initialization", False),
        ("tensor_model_parallel_size", layout.tp),
        ("pipeline_model_parallel_size", layout.pp),
        ("virtual_pipeline_model_parallel_size", layout.vpp if interleaved else None),
        ("pipeline_model_parallel_layout", megatron_layout(stages) if layout.pp > 1 else None),
        ("microbatch_group_size_per_vp_stage", layout.microbatch_group_size or layout.pp),
        ("context_parallel_size", layout.cp),
        ("expert_model_parallel_size", layout.ep),
        ("expert_tensor_parallel_size", layout.etp),
        ("sequence_parallel", layout.sp),
        ("overlap_p2p_comm", interleaved and job.comm.p2p == "overlapped"),
        ("batch_p2p_comm", not (interleaved and job.comm.p2p == "overlapped")),
        # gloo reads a tensor after the call that sends it; only streams order that with giving its memory back.
        ("deallocate_pipeline_outputs", capabilities_of(job.cluster.chip.device).streams),
        ("calculate_per_token_loss", job.objective.per_token),
        ("params_dtype", dtype),
        ("pipeline_dtype", dtype),
        ("bf16", precision.params == "bf16"),
        *_recompute_fields(job),
    )


def ddp_fields(job: Job) -> Fields:
    """Megatron-core's DistributedDataParallelConfig."""
    return (
        ("grad_reduce_in_fp32", job.precision.grads == "fp32"),
        ("overlap_grad_reduce", job.comm.overlap_grad_reduce),
        ("overlap_param_gather", job.comm.overlap_param_gather),
        ("use_distributed_optimizer", job.memory.distributed_optimizer),
    )


def optimizer_fields(job: Job) -> Fields:
    """Megatron-core's OptimizerConfig."""
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


def _moe_fields(job: Job, moe: Moe | None) -> Fields:
    if moe is None:
        return ()
    is_moe = tuple(int(isinstance(block.feed_forward, Moe)) for block in job.model.layers())
    return (
        ("num_moe_experts", moe.experts),
        ("moe_ffn_hidden_size", moe.ffn_hidden),
        ("moe_layer_freq", 1 if all(is_moe) else is_moe),
        ("moe_router_topk", moe.topk),
        ("moe_router_score_function", "softmax"),
        ("moe_router_pre_softmax", not moe.normalize_topk),
        ("moe_router_dtype", "fp32"),
        ("moe_router_load_balancing_type", "aux_loss" if moe.aux_loss else "none"),
        ("moe_aux_loss_coeff", moe.aux_loss),
        ("moe_z_loss_coeff", moe.z_loss or None),
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


def _uniform_parts(job: Job) -> tuple[Attention, Mlp | None, Moe | None]:
    mixers, feed_forwards = [b.mixer for b in job.model.layers()], [b.feed_forward for b in job.model.layers()]
    return (
        next(m for m in mixers if isinstance(m, Attention)),
        next((f for f in feed_forwards if isinstance(f, Mlp)), None),
        next((f for f in feed_forwards if isinstance(f, Moe)), None),
    )


DTYPES = MappingProxyType({"bf16": "bfloat16", "fp32": "float32"})
"""Ours to torch's."""
