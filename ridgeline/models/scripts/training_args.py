"""How a job trains, as flags of Megatron-LM and MindSpeed-LLM."""

from collections.abc import Iterator

from ridgeline.core.job import Comm, Dpo, FullRecompute, Job, Pretraining, Profile, SelectiveRecompute, Sft, WsdLr


def memory_and_comm_flags(job: Job) -> Iterator[tuple[object, ...]]:
    """What is recomputed, moved away, split and overlapped."""
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
        *_ways_to_experts(job.comm),
        ("no-overlap-p2p-communication", job.comm.p2p == "batched"),
        ("use-ascend-mc2", job.comm.tp_overlap == "mc2"),
        ("use-ascend-coc", job.comm.tp_overlap == "coc"),
        ("calculate-per-token-loss", job.objective.per_token),
    ):
        if wanted:
            yield (flag,)


def _ways_to_experts(comm: Comm) -> Iterator[tuple[str, bool]]:
    """What runs while tokens are on their way to experts; MindSpeed's overlap has the shared experts in it."""
    exchange = "allgather" if comm.moe_dispatcher == "allgather" else "alltoall"
    products = "weight_gradients" in comm.moe_overlap
    yield "moe-permutation-async-comm", "permutation" in comm.moe_overlap
    yield "moe-shared-expert-overlap", "shared_experts" in comm.moe_overlap and not products
    yield f"moe-{exchange}-overlap-comm", products
    yield "overlap-moe-expert-parallel-comm", comm.moe_fb_overlap


def tuning_flags(job: Job) -> Iterator[tuple[object, ...]]:
    """The objective beside pretraining, and an adapter."""
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


def optimizer_flags(job: Job) -> Iterator[tuple[object, ...]]:
    """AdamW and its learning rate."""
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


def run_flags(job: Job) -> Iterator[tuple[object, ...]]:
    """Steps, what is saved and told of them, and what they read."""
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
