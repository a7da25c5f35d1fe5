"""A job as the arguments of a Megatron-LM launch; what Megatron-LM has no flag for is refused or told.

Positions scaled by yarn or llama3, noop layers, uneven stages, other storage of the optimizer's state, swapping and
fine-tuning take flags of MindSpeed-LLM.
"""

import math
from collections.abc import Iterator
from itertools import chain
from types import MappingProxyType

import attrs

from ridgeline.core.diff import diff
from ridgeline.core.errors import LoweringError
from ridgeline.core.job import Dpo, FullRecompute, Job, Pretraining, Profile, SelectiveRecompute, Sft, WsdLr
from ridgeline.core.model import (
    Attention,
    LatentAttention,
    LinearRope,
    Llama3Rope,
    Mlp,
    ModelSpec,
    Moe,
    RopeScaling,
    YarnRope,
)
from ridgeline.models.jobs import job_of
from ridgeline.models.scripts.job import import_command
from ridgeline.models.scripts.shell import Command
from ridgeline.parallel.stages import layout_text

CP_COMM_TYPES = MappingProxyType({"ring": "p2p", "ulysses": "a2a", "hybrid": "a2a+p2p", "kv_allgather": "all_gather"})
ORDERS = ("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp")


def megatron_args(job: Job) -> tuple[tuple[str, ...], ...]:
    """The words of each flag, its values behind it, such that importing them gives model, layout and batch again.

    Raises:
        LoweringError: A line for everything that no flag can say.
    """
    if faults := tuple(_faults(job)):
        raise LoweringError("\n".join(faults))
    arguments = tuple((f"--{flag}", *map(_text, values)) for flag, *values in _flags(job))
    if lost := tuple(_lost(job, arguments)):
        raise LoweringError("\n".join(lost))
    return arguments


def _lost(job: Job, arguments: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """What the arguments do not say: each field that is another one when they are read again."""
    cluster = job.cluster
    launcher = (("nnodes", str(cluster.nodes)), ("nproc_per_node", str(cluster.devices_per_node)))
    again = import_command(Command("pretrain_gpt.py", launcher, tuple(chain.from_iterable(arguments)))).plain
    read = job_of({"name": job.name, **again, "cluster": cluster})
    model = attrs.evolve(read.model, name=job.model.name, family=job.model.family)
    layout = attrs.evolve(read.layout, schedule=job.layout.schedule)  # an order that Megatron-LM runs by itself
    read = attrs.evolve(read, model=model, layout=layout)
    for part in ("model", "layout", "batch", "precision", "memory", "comm", "optimizer", "objective", "adapter"):
        for change in diff(attrs.evolve(read, **{part: getattr(job, part)}), read):
            instead = "its default" if change.right is None else repr(change.right)
            yield f"{change.path}={change.left!r}: no flag says it; {instead} would stand in its place"


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _faults(job: Job) -> Iterator[str]:
    blocks = job.model.layers()
    mixers = {block.mixer for block in blocks}
    if len(mixers) > 1:
        yield f"model.blocks.mixer={len(mixers)} kinds: the flags say one for all layers; use one"
    for mixer in sorted(mixers, key=repr):
        if not isinstance(mixer, (Attention, LatentAttention)):
            yield f"model.blocks.mixer={mixer.kind if mixer else None!r}: no flag says it; use kind='attention'"
        elif (scaling := mixer.rope.scaling) is not None:
            if not isinstance(scaling, (LinearRope, Llama3Rope, YarnRope)):
                yield f"model.blocks.mixer.rope.scaling={scaling.kind!r}: no flag says it; use linear, llama3 or yarn"
            elif isinstance(scaling, YarnRope) and scaling.attention_factor is not None:
                yield f"rope.scaling.attention_factor={scaling.attention_factor}: no flag says it; leave it out"
    for kind in (Mlp, Moe):
        parts = {block.feed_forward for block in blocks if isinstance(block.feed_forward, kind)}
        if len(parts) > 1:
            yield f"model.blocks.feed_forward={len(parts)} of kind {kind.kind!r}: the flags say one for all; use one"
    biased = {getattr(block.feed_forward, "bias", False) for block in blocks}
    if True in biased and not all(
        isinstance(mixer, Attention) and mixer.qkv_bias and mixer.out_bias for mixer in mixers
    ):
        yield "model.blocks.feed_forward.bias=True: Megatron-LM then has all biases; set qkv_bias and out_bias too"
    recompute = job.memory.recompute
    if isinstance(recompute, FullRecompute) and (recompute.stage_layers or recompute.modules):
        yield "memory.recompute: the flags say one number for all stages; leave stage_layers and modules out"
    if isinstance(recompute, SelectiveRecompute) and recompute.num_layers is not None:
        yield f"memory.recompute.num_layers={recompute.num_layers}: no flag says it for all parts; leave it out"
    if job.layout.order not in ORDERS:
        yield f"layout.order={job.layout.order!r}: Megatron-LM has {' and '.join(ORDERS)} only"
    usual = attrs.evolve(job.layout, schedule=None).schedule_name
    if job.layout.schedule_name != usual:
        yield f"layout.schedule={job.layout.schedule!r}: with vpp={job.layout.vpp} Megatron-LM runs {usual}"
    if job.memory.recompute_when != "backward":
        yield f"memory.recompute_when={job.memory.recompute_when!r}: Megatron-LM has no such flag; use 'backward'"
    if job.comm.moe_fb_overlap:
        yield "comm.moe_fb_overlap=True: Megatron-LM has no such flag; set it to false"
    layers = job.model.num_layers + len(job.layout.noop_layers)
    if job.layout.stages is None and layers % (job.layout.pp * job.layout.vpp):
        yield f"layout.vpp={job.layout.vpp}: pp*vpp must divide the {layers} layers, or set layout.stages"


def _flags(job: Job) -> Iterator[tuple[object, ...]]:
    yield from _model_flags(job)
    yield from _layout_flags(job)
    yield "seq-length", job.batch.seq_len
    yield "micro-batch-size", job.batch.mbs
    yield "global-batch-size", job.batch.gbs
    if job.batch.packing == "eod_reset":
        yield ("reset-position-ids",)
        yield ("reset-attention-mask",)
    if job.precision.params != "fp32":
        yield (job.precision.params,)
    if job.precision.params == "fp16" and job.precision.grads == "fp32":
        yield ("accumulate-allreduce-grads-in-fp32",)
    if job.precision.grads == "bf16":
        yield ("grad-reduce-in-bf16",)
    yield from _memory_and_comm_flags(job)
    yield from _tuning_flags(job)
    yield from _optimizer_flags(job)
    yield from _run_flags(job)


def _model_flags(job: Job) -> Iterator[tuple[object, ...]]:
    model, blocks = job.model, job.model.layers()
    mixer = blocks[0].mixer
    yield "num-layers", model.num_layers + len(job.layout.noop_layers)
    yield "hidden-size", model.hidden
    yield "vocab-size", model.vocab_size
    yield "max-position-embeddings", model.max_position
    yield "normalization", "RMSNorm"
    yield "norm-epsilon", model.norm_eps
    yield "init-method-std", model.init_std
    yield ("swiglu",)
    yield "position-embedding-type", "rope"
    if not model.tied_embeddings:
        yield ("untie-embeddings-and-output-weights",)
    if model.mtp:
        yield "mtp-num-layers", model.mtp
        yield "mtp-loss-scaling-factor", job.objective.mtp_loss
    if not any(isinstance(block.feed_forward, Mlp) and block.feed_forward.bias for block in blocks):
        yield ("disable-bias-linear",)
    for flag in ("hidden-dropout", "attention-dropout"):
        yield flag, job.objective.dropout if isinstance(job.objective, Pretraining) else 0.0
    if isinstance(mixer, (Attention, LatentAttention)):
        yield "num-attention-heads", mixer.heads
        yield "rotary-base", mixer.rope.base
        if mixer.rope.interleaved:
            yield ("rotary-interleaved",)
        if mixer.rope.share != 1.0:
            yield "rotary-percent", mixer.rope.share
        yield from _scaling_flags(mixer.rope.scaling)
    if isinstance(mixer, Attention):
        yield "kv-channels", mixer.head_dim
        yield ("group-query-attention",)
        yield "num-query-groups", mixer.kv_heads
        for flag, wanted in (
            ("add-qkv-bias", mixer.qkv_bias),
            ("add-dense-bias", mixer.out_bias),
            ("qk-layernorm", mixer.qk_norm),
        ):
            if wanted:
                yield (flag,)
        if mixer.window:
            yield "window-size", f"{mixer.window - 1},0"
    elif isinstance(mixer, LatentAttention):
        yield ("multi-latent-attention",)
        if mixer.q_lora_rank:
            yield "q-lora-rank", mixer.q_lora_rank
        yield "kv-lora-rank", mixer.kv_lora_rank
        yield "qk-head-dim", mixer.nope_head_dim
        yield "qk-pos-emb-head-dim", mixer.rope_head_dim
        yield "v-head-dim", mixer.v_head_dim
        if mixer.indexer is not None:
            yield ("enable-dsa-indexer",)
            yield "index-n-heads", mixer.indexer.heads
            yield "index-head-dim", mixer.indexer.head_dim
            yield "index-topk", mixer.indexer.topk
    yield from _scale_flags(model, layers=model.num_layers + len(job.layout.noop_layers))
    yield from _feed_forward_flags(job)


def _scale_flags(model: ModelSpec, *, layers: int) -> Iterator[tuple[object, ...]]:
    """MiniCPM's flags of MindSpeed-LLM, as short as they were published; noop layers count."""
    if model.embedding_scale != 1.0:
        yield "scale-emb", model.embedding_scale
    if model.residual_scale != 1.0:
        yield "scale-depth", float(f"{model.residual_scale * math.sqrt(layers):.12g}")
    if model.logit_scale != 1.0:
        yield "dim-model-base", float(f"{model.logit_scale * model.hidden:.12g}")


def _scaling_flags(scaling: RopeScaling | None) -> Iterator[tuple[object, ...]]:
    match scaling:
        case LinearRope(factor=factor):
            yield "rotary-seq-len-interpolation-factor", factor
        case Llama3Rope() | YarnRope():
            yield "rope-scaling-type", scaling.kind
            yield "rope-scaling-factor", scaling.factor
            yield "rope-scaling-original-max-position-embeddings", scaling.original_max_position
            yield from _frequency_flags(scaling)
        case _:
            return


def _frequency_flags(scaling: Llama3Rope | YarnRope) -> Iterator[tuple[object, ...]]:
    if isinstance(scaling, Llama3Rope):
        yield "low-freq-factor", scaling.low_freq_factor
        yield "high-freq-factor", scaling.high_freq_factor
        return
    yield "beta-fast", scaling.beta_fast
    yield "beta-slow", scaling.beta_slow
    if scaling.mscale is not None:
        yield "rope-scaling-mscale", scaling.mscale
    if scaling.mscale_all_dim is not None:
        yield "rope-scaling-mscale-all-dim", scaling.mscale_all_dim


def _feed_forward_flags(job: Job) -> Iterator[tuple[object, ...]]:
    parts = [block.feed_forward for block in job.model.layers()]
    moe = next((part for part in parts if isinstance(part, Moe)), None)
    widths = [part.ffn_hidden for part in parts if isinstance(part, Mlp)] or [moe.ffn_hidden for moe in (moe,) if moe]
    yield from (("ffn-hidden-size", width) for width in widths[:1])
    yield "moe-token-dispatcher-type", job.comm.moe_dispatcher
    if moe is None:
        return
    yield "num-experts", moe.experts
    yield "moe-router-topk", moe.topk
    yield "moe-ffn-hidden-size", moe.ffn_hidden
    balancing = "group_limited_greedy" if moe.group_score == "max" else "aux_loss" if moe.aux_loss else "none"
    yield "moe-router-load-balancing-type", balancing
    yield "moe-aux-loss-coeff", moe.aux_loss
    yield from _expert_flags(moe)
    if moe.z_loss:
        yield "moe-z-loss-coeff", moe.z_loss
    if not moe.normalize_topk:
        yield ("moe-router-pre-softmax",)
    own = iter(parts)
    total = len(parts) + len(job.layout.noop_layers)
    is_moe = [1 if at in job.layout.noop_layers else int(isinstance(next(own), Moe)) for at in range(total)]
    if not all(is_moe):
        yield "moe-layer-freq", str(is_moe).replace(" ", "")


def _expert_flags(moe: Moe) -> Iterator[tuple[object, ...]]:
    """What few routed layers have."""
    for flag, value, usual in (
        ("moe-router-score-function", moe.score, "softmax"),
        ("moe-router-topk-scaling-factor", moe.topk_scale, 1.0),
        ("moe-router-num-groups", moe.groups, 1),
        ("moe-router-group-topk", moe.group_topk, 1),
        ("moe-shared-expert-intermediate-size", moe.shared_ffn, None),
        ("moe-expert-capacity-factor", moe.capacity_factor, None),
        ("moe-token-drop-policy", moe.drop, "probs"),
        ("moe-router-bias-update-rate", moe.expert_bias_rate, 1e-3),
        ("moe-device-level-aux-loss-coeff", moe.device_aux_loss, 0.0),
        ("moe-comm-aux-loss-coeff", moe.comm_aux_loss, 0.0),
    ):
        if value != usual:
            yield flag, value
    for flag, wanted in (
        ("seq-aux", moe.aux_per_sequence),
        ("moe-router-enable-expert-bias", moe.expert_bias),
        ("shared-expert-gate", moe.shared_gate),
        ("moe-pad-expert-input-to-capacity", moe.pad_to_capacity),
    ):
        if wanted:
            yield (flag,)


def _layout_flags(job: Job) -> Iterator[tuple[object, ...]]:
    layout = job.layout
    yield "tensor-model-parallel-size", layout.tp
    yield "pipeline-model-parallel-size", layout.pp
    yield "context-parallel-size", layout.cp
    yield "cp-comm-type", CP_COMM_TYPES[layout.cp_algorithm]
    if layout.cp_algorithm == "hybrid":
        yield "hierarchical-context-parallel-sizes", layout.ulysses, layout.cp // layout.ulysses
    if layout.repeat_kv:
        yield ("kv-head-repeat-before-uly-alltoall",)
    yield "expert-model-parallel-size", layout.ep
    yield "expert-tensor-parallel-size", layout.etp
    yield "make-vocab-size-divisible-by", layout.vocab_multiple
    if layout.sp:
        yield ("sequence-parallel",)
    if layout.stages is not None and layout.vpp == 1:
        yield "num-layer-list", ",".join(map(str, layout.stages))
    elif layout.stages is not None:
        yield "pipeline-model-parallel-layout", layout_text(layout.stages, mtp=job.model.mtp)
    elif layout.vpp > 1:
        yield "num-virtual-stages-per-pipeline-rank", layout.vpp
    if layout.noop_layers:
        yield "noop-layers", ",".join(map(str, layout.noop_layers))
    if layout.microbatch_group_size:
        yield "microbatch-group-size-per-virtual-pipeline-stage", layout.microbatch_group_size
    if layout.order == "tp-cp-ep-pp-dp":
        yield ("use-tp-pp-dp-mapping",)


def _memory_and_comm_flags(job: Job) -> Iterator[tuple[object, ...]]:
    match job.memory.recompute:
        case SelectiveRecompute(modules=modules):
            yield "recompute-granularity", "selective"
            yield "recompute-modules", *("moe_act" if module == "activation" else module for module in modules)
        case FullRecompute(method=method, num_layers=num_layers, per=per):
            yield "recompute-granularity", "full"
            yield "recompute-method", method
            yield "recompute-num-layers", num_layers
            if per == "rank":
                yield ("enable-recompute-layers-per-pp-rank",)
        case None:
            pass
    for flag, wanted in (
        ("use-distributed-optimizer", job.memory.distributed_optimizer),
        ("reuse-fp32-param", job.precision.masters == "low_bits"),
        ("o2-optimizer", job.precision.moments == "bf16"),
        ("swap-optimizer", job.memory.swap_optimizer),
        ("swap-attention", job.memory.swap_attention),
        ("overlap-grad-reduce", job.comm.overlap_grad_reduce),
        ("overlap-param-gather", job.comm.overlap_param_gather),
        ("no-overlap-p2p-communication", job.comm.p2p == "batched"),
        ("use-ascend-mc2", job.comm.tp_overlap == "mc2"),
        ("use-ascend-coc", job.comm.tp_overlap == "coc"),
        ("calculate-per-token-loss", job.objective.per_token),
    ):
        if wanted:
            yield (flag,)


def _tuning_flags(job: Job) -> Iterator[tuple[object, ...]]:
    match job.objective:
        case Sft(padded=padded):
            yield "stage", "sft"
            yield ("is-instruction-dataset",)
        case Dpo(loss=loss, beta=beta, label_smoothing=smoothing, padded=padded):
            yield "stage", "simpo" if loss == "simpo" else "dpo"
            if loss != "simpo":
                yield "dpo-loss-type", loss
            yield "dpo-beta", beta
            yield "dpo-label-smoothing", smoothing
            yield ("is-pairwise-dataset",)
        case Pretraining():
            padded = True
    if not padded:
        yield ("no-pad-to-seq-lengths",)
    if adapter := job.adapter:
        yield "lora-r", adapter.rank
        yield "lora-alpha", adapter.alpha
        yield "lora-target-modules", *adapter.targets
        if adapter.base == "nf4":
            yield ("qlora",)


def _optimizer_flags(job: Job) -> Iterator[tuple[object, ...]]:
    adam, schedule = job.optimizer, job.optimizer.lr_schedule
    yield "lr", adam.lr
    yield "min-lr", adam.min_lr
    yield "lr-decay-style", "WSD" if isinstance(schedule, WsdLr) else schedule.kind
    if (decay_steps := getattr(schedule, "decay_steps", None)) is not None:
        yield "lr-decay-iters", decay_steps
    if isinstance(schedule, WsdLr):
        yield "lr-wsd-decay-iters", schedule.anneal_steps
        yield "lr-wsd-decay-style", schedule.style
    yield "lr-warmup-iters", adam.warmup_steps
    yield "weight-decay", adam.weight_decay
    yield "adam-beta1", adam.beta1
    yield "adam-beta2", adam.beta2
    yield "adam-eps", adam.eps
    yield "clip-grad", adam.clip_grad


def _run_flags(job: Job) -> Iterator[tuple[object, ...]]:
    yield "train-iters", job.run.steps
    yield "save", job.run.output
    if job.run.save_every:
        yield "save-interval", job.run.save_every
    yield "log-interval", job.run.log_every
    if job.run.valid_every:
        yield "eval-interval", job.run.valid_every
    yield "eval-iters", job.run.valid_steps if job.run.valid_every else 0
    yield "seed", job.run.seed
    if job.run.deterministic:
        yield ("npu-deterministic",)
    if job.profile is not None:
        yield from _profile_flags(job.profile, output=job.run.output)
    if job.data.sources:
        yield "data-path", *(word for source in job.data.sources for word in (source.weight, source.path))
        yield "split", ",".join(map(str, job.data.split))
    if job.data.tokenizer:
        yield "tokenizer-type", "HuggingFaceTokenizer"
        yield "tokenizer-model", job.data.tokenizer


def _profile_flags(profile: Profile, *, output: str) -> Iterator[tuple[object, ...]]:
    yield ("profile",)
    yield "profile-step-start", profile.start
    yield "profile-step-end", profile.end
    yield "profile-ranks", *profile.ranks
    yield "profile-level", "level_none" if profile.level == "none" else profile.level
    flags = {"with-cpu": profile.cpu, "with-stack": profile.stack, "with-memory": profile.memory}
    yield from ((f"profile-{name}",) for name, on in (flags | {"record-shapes": profile.shapes}).items() if on)
    yield "profile-save-path", profile.output or f"{output}/profile"
