"""A model as flags of Megatron-LM and MindSpeed-LLM."""

import math
from collections.abc import Iterator

from ridgeline.core.job import Job, Pretraining
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


def model_flags(job: Job) -> Iterator[tuple[object, ...]]:
    """All layers alike, but for which of them are of experts."""
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
            yield "indexer-loss-coeff", job.objective.indexer_loss
            yield from _sharing_flags(model)
    yield from _scale_flags(model, layers=model.num_layers + len(job.layout.noop_layers))
    yield from _feed_forward_flags(job)


def _sharing_flags(model: ModelSpec) -> Iterator[tuple[object, ...]]:
    """How many layers have an indexer of their own before one that shares, and how many share each later one."""
    shared = [bool(mixer.indexer and mixer.indexer.shared) for mixer in _latent_mixers(model)]
    if True in shared:
        first = shared.index(True)
        yield "index-skip-topk-offset", first
        yield "index-topk-freq", [*shared[first:], False].index(False) + 1


def _latent_mixers(model: ModelSpec) -> list[LatentAttention]:
    return [block.mixer for block in model.layers() if isinstance(block.mixer, LatentAttention)]


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
    if moe.score == "sparsemixer":
        balancing = "sparsemixer_topk"
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
        ("moe-router-score-function", "softmax" if moe.score == "sparsemixer" else moe.score, "softmax"),
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
