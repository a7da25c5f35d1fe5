"""What a plan allows and this runtime cannot do yet, said field by field.

Fields with a default that Megatron-core or a module of ours does not honour are refused unless a table here says
otherwise, so that a new trait of a model is never left out in silence.
"""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.errors import LoweringError
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import (
    Attention,
    Block,
    GatedDeltaNet,
    LatentAttention,
    Mamba2,
    Mlp,
    ModelSpec,
    Moe,
    Rope,
    is_gated,
)
from ridgeline.kernels.model_ops import has_modified_scores

RUNS: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "layout.cp_algorithm": ("ring", "ulysses", "hybrid"),
        "precision.params": ("bf16", "fp32"),
        "precision.grads": ("fp32", "bf16"),
        "precision.masters": ("fp32",),
        "precision.moments": ("fp32",),
        "memory.recompute_when": ("backward",),
        "memory.swap_optimizer": (False,),
        "memory.swap_attention": (False,),
        "memory.plain": ((),),
        "memory.pads_values": (False,),
        "memory.loss": ("in_place",),
        "memory.loss_chunk": (None,),
        "memory.fused_accumulation": (False,),
        "memory.grouped_experts": (False,),
        "comm.moe_fb_overlap": (False,),
        "comm.tp_overlap": ("none",),
        "optimizer.kernel": ("torch",),
        "objective.kind": ("pretraining",),
    }
)
"""What this runtime can do of fields that a plan understands whole."""

PLANNED_ONLY = ("seq1f1b",)
"""Schedules that nothing runs: here, of slices, whose attention would have to see those before."""

ANY = object()

TRAITS: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {
        ModelSpec: {
            "norm": ANY,
            "mtp": ANY,
            "mtp_block": ANY,
            "mtp_before_norm": ANY,
            "learned_positions": ANY,
            "embedding_scale": ANY,
            "embedding_norm": ANY,
            "residual_scale": ANY,
            "logit_scale": ANY,
            "logit_softcap": ANY,
            "head_bias": ANY,
            "normalized_head": ANY,
        },
        Block: {"norms": ANY, "shortcut": ANY},
        Attention: {
            "positions": ANY,
            "scale": ANY,
            "softcap": ANY,
            "sinks": ANY,
            "gate": ANY,
            "qk_norm_over": ANY,
            "qk_norm_after_rope": ANY,
            "shares_kv": ANY,
        },
        Rope: {"share": ANY, "interleaved": ANY},
        Mamba2: {"step_min": ANY},
        LatentAttention: {"indexer": ANY, "norm_eps": ANY, "latent_scale": ANY},
        Mlp: {"limit": ANY},
        Moe: {
            "limit": ANY,
            "shared_limit": ANY,
            "router_bias": ANY,
            "bias": ANY,
            "score": ANY,
            "nearness": ANY,
            "sampled": ANY,
            "input_jitter": ANY,
            "topk_scale": ANY,
            "aux_per_sequence": ANY,
            "device_aux_loss": ANY,
            "comm_aux_loss": ANY,
            "groups": ANY,
            "group_topk": ANY,
            "group_score": ANY,
            "expert_bias": ANY,
            "expert_bias_rate": ANY,
            "shared_ffn": ANY,
            "shared_gate": ANY,
            "capacity_factor": ANY,
            "pad_to_capacity": ANY,
            "drop": ANY,
            "zero_experts": ANY,
        },
    }
)
"""Values of a model's traits that modules know; of a trait that is not here, its default alone."""

UNIFORM: Mapping[type, tuple[str, ...]] = MappingProxyType(
    {
        Mlp: ("feed_forward", "ffn_hidden"),
        Moe: (
            "feed_forward",
            *("experts", "topk", "ffn_hidden", "shared_ffn", "shared_gate", "capacity_factor", "pad_to_capacity"),
        ),
    }
)
"""Where a kind of part stands in a block, and what Megatron-core says once for all layers that hold one."""


def check_lowerable(job: Job) -> None:
    """Refuse what the plan allows and this runtime cannot do yet.

    Raises:
        LoweringError: A line for each.
    """
    if faults := lowering_faults(job):
        raise LoweringError("\n".join(faults))


def lowering_faults(job: Job) -> tuple[str, ...]:
    """What of a job this runtime cannot do yet, a sentence each; empty when it runs it."""
    return tuple(dict.fromkeys((*_job_faults(job), *_recompute_faults(job), *_model_faults(job.model))))


def _job_faults(job: Job) -> Iterator[str]:
    if job.layout.cp > 1:
        yield from _context_faults(job)
    if job.layout.schedule_name in PLANNED_ONLY:
        yield f"layout.schedule={job.layout.schedule!r}: is planned only, nothing runs it yet; use '1f1b'"
    if job.layout.placement == "v" and job.model.mtp:
        rule = f"has no lowering beside mtp={job.model.mtp}, whose embedding lies beside the model's on one rank"
        yield f"layout.schedule={job.layout.schedule!r}: {rule}; use 'zb_h1'"
    for mixer in dict.fromkeys(block.mixer for block in job.model.kinds):
        if isinstance(mixer, Attention) and mixer.qk_norm_over == "layer" and mixer.kv_heads % job.layout.tp:
            rule = f"one norm over all heads has no lowering where kv_heads={mixer.kv_heads} are held more than once"
            yield f"layout.tp={job.layout.tp}: {rule}; use a divisor of it"
    for path, able in RUNS.items():
        value = attrgetter(path)(job)
        if value not in able:
            told = getattr(value, "kind", value)
            yield f"{path}={told!r}: is planned only, nothing runs it yet; use {' or '.join(map(repr, able))}"
    yield from _adapter_faults(job)
    if dropout := getattr(job.objective, "dropout", 0.0):
        yield f"objective.dropout={dropout}: is planned only, training runs without; use 0.0"


def _context_faults(job: Job) -> Iterator[str]:
    """What has no lowering where cp splits samples."""
    layout, model = job.layout, job.model
    if layout.context_degrees[0] > 1 and job.batch.packing == "eod_reset":
        way_out = "use layout.cp_algorithm='ulysses'"
        yield f"batch.packing='eod_reset': keys and values of packed documents do not go round; {way_out}"
    for mixer in dict.fromkeys(block.mixer for block in model.kinds):
        if isinstance(mixer, (GatedDeltaNet, Mamba2)):
            yield f"layout.cp={layout.cp}: {mixer.kind} runs over its own part of a sample only; use 1"
        if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
            yield f"layout.cp={layout.cp}: an indexer chooses among its own part of a sample only; use 1"
        if isinstance(mixer, Attention) and has_modified_scores(mixer) and layout.cp_algorithm != "ulysses":
            rule = "attention with ALiBi, a softcap or sinks is not merged"
            yield f"layout.cp_algorithm={layout.cp_algorithm!r}: {rule}; use 'ulysses'"


def _adapter_faults(job: Job) -> Iterator[str]:
    adapter = job.adapter
    if adapter is None:
        return
    if adapter.base != "params":
        yield f"adapter.base={adapter.base!r}: is planned only, nothing runs it yet; use 'params'"
    in_experts = [target for target in ("linear_fc1", "linear_fc2") if target in adapter.targets]
    if job.model.moes and job.layout.etp > 1 and in_experts:
        rule = "experts' adapters have no lowering where an expert is split"
        yield f"layout.etp={job.layout.etp}: {rule}; use 1, or leave {' and '.join(in_experts)} out of adapter.targets"
    mixers = (run.block.mixer for run in job.model.blocks)
    if job.objective.indexer_loss and any(isinstance(each, LatentAttention) and each.indexer for each in mixers):
        rule = "an indexer is frozen beside adapters"
        yield f"objective.indexer_loss={job.objective.indexer_loss}: {rule}; use 0.0"


def _model_faults(model: ModelSpec) -> Iterator[str]:
    yield from _trait_faults(model, "model")
    for trait in ("learned_positions", "embedding_norm"):
        if model.mtp and getattr(model, trait):
            yield f"model.{trait}=True: has no lowering beside mtp={model.mtp}; use False, or mtp=0"
    if model.mtp and model.mtp_before_norm and model.norm == "layer":
        yield "model.mtp_before_norm=True: has a lowering for RMSNorms only; use False"
    for block in model.kinds:
        yield from _trait_faults(block, "model.blocks")
        if block.norms == "sandwich" and (block.mixer is None or block.feed_forward is None):
            yield "model.blocks.norms='sandwich': has no lowering in a layer of one part; use 'pre'"
        if isinstance(block.mixer, Mamba2) and block.feed_forward is not None:
            yield "model.blocks.mixer='mamba2': has no lowering beside a feed_forward; give each a layer of its own"
        for place, part in (("mixer", block.mixer), ("feed_forward", block.feed_forward)):
            if part is not None:
                yield from _trait_faults(part, f"model.blocks.{place}")
        part = block.feed_forward
        for name in ("limit", "shared_limit"):
            limit = getattr(part, name, None)
            if part is not None and limit is not None and not is_gated(part.activation):
                rule = f"bounds a gate and an up-projection, which activation={part.activation!r} has not"
                yield f"model.blocks.feed_forward.{name}={limit}: {rule}; leave it out"
        if isinstance(part, Moe) and part.shared_limit is not None and part.shared_ffn is None:
            rule = "bounds shared experts, and there are none"
            yield f"model.blocks.feed_forward.shared_limit={part.shared_limit}: {rule}; leave it out"
        if block.shortcut is not None:
            yield from _trait_faults(block.shortcut, "model.blocks.shortcut")
            if block.norms != "pre":
                yield f"model.blocks.norms={block.norms!r}: has no lowering beside a shortcut; use 'pre'"
        rope = getattr(block.mixer, "rope", None)
        if rope is not None:
            yield from _trait_faults(rope, "model.blocks.mixer.rope")
    yield from _uniform_faults(model)
    yield from _attention_faults(model)


def _attention_faults(model: ModelSpec) -> Iterator[str]:
    """Traits of attention that no module has beside one another."""
    mixers = [block.mixer for block in model.layers() if isinstance(block.mixer, Attention)]
    if len({mixer.qk_norm_over for mixer in mixers if mixer.qk_norm}) > 1:
        rule = "Megatron-core has one way to sum their gradients for all layers"
        yield f"model.blocks.mixer.qk_norm_over=['head', 'layer']: {rule}; use one value"
    for mixer in dict.fromkeys(mixers):
        if mixer.qk_norm and mixer.qk_norm_after_rope and (mixer.qk_norm_over == "layer" or model.norm == "layer"):
            yield "model.blocks.mixer.qk_norm_after_rope=True: has a lowering for RMSNorms of heads only; use False"
        if mixer.shares_kv and mixer.qk_norm and not mixer.qk_norm_after_rope:
            yield "model.blocks.mixer.shares_kv=True: has no lowering beside norms before the turn; norm after it"
        if mixer.shares_kv and mixer.gate != "none":
            yield f"model.blocks.mixer.shares_kv=True: has no lowering beside gate={mixer.gate!r}; use 'none'"
    for above, below in zip(mixers[1:], mixers, strict=False):
        if above.shares_kv and (above.kv_heads, above.head_dim) != (below.kv_heads, below.head_dim):
            rule = f"keys and values are shared in the shape, {below.kv_heads} of {below.head_dim}, they are made in"
            yield f"model.blocks.mixer.kv_heads={above.kv_heads}, head_dim={above.head_dim}: {rule}; use that"
    if model.shares_between_layers and any(block.shortcut or block.norms != "pre" for block in model.layers()):
        path = "shares_kv" if mixers else "indexer.shared"
        yield f"model.blocks.mixer.{path}=True: has no lowering beside a shortcut or norms='sandwich'; use False"
    if model.mtp and model.block_ahead.shares_below:
        rule = "its layer shares what a layer below makes, as the last does"
        yield f"model.mtp={model.mtp}: {rule}; use 0, or a mtp_block"


def _trait_faults(spec: Any, path: str) -> Iterator[str]:
    able = TRAITS.get(type(spec), {})
    for field in attrs.fields(type(spec)):
        usual = (field.default,) if "quiet" in field.metadata else ANY
        known, value = able.get(field.name, usual), getattr(spec, field.name)
        if known is not ANY and value not in known:
            told = getattr(value, "kind", value)
            yield f"{path}.{field.name}={told!r}: has no lowering yet; use {' or '.join(map(repr, known))}"


def _uniform_faults(model: ModelSpec) -> Iterator[str]:
    blocks = model.kinds
    for kind, (place, *names) in UNIFORM.items():
        parts = model.moes if kind is Moe else [p for block in blocks if isinstance(p := getattr(block, place), kind)]
        for name in names:
            values = sorted({getattr(part, name) for part in parts}, key=lambda value: (value is None, value))
            if len(values) > 1:
                yield f"model.blocks.{place}.{name}={values}: Megatron-core has one for all layers; use one value"
    parts = [block.feed_forward for block in blocks if block.feed_forward]
    gated = {part.activation: is_gated(part.activation) for part in parts}
    if len(set(gated.values())) > 1:
        yield f"model.blocks.feed_forward.activation={tuple(gated)}: Megatron-core has all of them gated or none"


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
    if "mla_up_proj" in modules:
        yield "memory.recompute.modules='mla_up_proj': is planned only, nothing runs it yet; leave it out"
