"""Rules between specs: whatever passes is accepted by megatron-core 0.16.1, and every fault of a job comes at once.

Each rule is a generator of problems over a job. A rule that needs ``dp`` is left out where the degrees do not divide
the world, so that one fault is not reported many times.

Source:
    megatron-core 0.16.1: transformer/transformer_config.py and model_parallel_config.py (``__post_init__``),
    parallel_state.py (``initialize_model_parallel``, ``RankGenerator``), pipeline_parallel/schedules.py,
    transformer/transformer_block.py (``_checkpointed_forward``), transformer/moe/, optimizer_param_scheduler.py.
"""

from collections.abc import Callable, Iterator
from math import gcd

from ridgeline.core.errors import PlanError, Problem, SpecError, divisors, one_of
from ridgeline.core.job import ConstantLr, FullRecompute, Job, SelectiveRecompute, WsdLr
from ridgeline.core.layout import INTERLEAVED, V_SHAPED
from ridgeline.core.model import Attention, Block, GatedDeltaNet, LatentAttention, Mamba2, Mlp, Moe
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.stages import StageMap, plan_stages, stage_problems

Rule = Callable[[Job], Iterator[Problem]]


def check_job(job: Job) -> None:
    """Refuse a job that cannot be planned.

    Raises:
        PlanError: Every rule broken, with its way out.
    """
    problems = job_problems(job)
    if problems:
        raise PlanError(problems)


def job_problems(job: Job) -> tuple[Problem, ...]:
    """Every rule between specs that a job breaks."""
    rules = RULES if _dp_exists(job) else tuple(rule for rule in RULES if rule not in NEEDS_DP)
    return tuple(problem for rule in rules for problem in rule(job))


def mesh_of(job: Job) -> Mesh:
    """The mesh of a job's layout on its cluster.

    Raises:
        SpecError: No mesh has these degrees in this order.
    """
    layout = job.layout
    return Mesh(tp=layout.tp, cp=layout.cp, ep=layout.ep, etp=layout.etp, dp=job.dp, pp=layout.pp, order=layout.order)


def stages_of(job: Job) -> StageMap:
    """Which layers each stage of a job owns.

    Raises:
        PlanError: The layers cannot be divided so.
    """
    layout = job.layout
    return plan_stages(
        job.model.num_layers,
        pp=layout.pp,
        vpp=layout.chunks,
        stages=layout.stages,
        noop_layers=layout.noop_layers,
        mtp=job.model.mtp,
        placement=layout.placement,
    )


def _dp_exists(job: Job) -> bool:
    layout = job.layout
    return job.cluster.world_size % (layout.tp * layout.cp * layout.pp) == 0


def _world(job: Job) -> Iterator[Problem]:
    layout, world = job.layout, job.cluster.world_size
    if not _dp_exists(job):
        value = layout.tp * layout.cp * layout.pp
        rule = f"must divide world_size={world} (cluster.nodes={job.cluster.nodes} * {job.cluster.devices_per_node})"
        yield Problem("layout.tp*cp*pp", value, rule, one_of(divisors(world)))


def _mesh(job: Job) -> Iterator[Problem]:
    try:
        mesh_of(job)
    except SpecError as error:
        yield from (problem.under("layout") for problem in error.problems)


def _tensor_parallel(job: Job) -> Iterator[Problem]:
    layout = job.layout
    sizes: dict[str, int] = {}
    kv_heads: set[int] = set()
    for run in job.model.blocks:
        sizes.update(_split_over_tp(run.block))
        if isinstance(run.block.mixer, Attention):
            kv_heads.add(run.block.mixer.kv_heads)
    fitting = [
        tp
        for tp in divisors(gcd(*sizes.values()) if sizes else 1)
        if all(kv % tp == 0 or tp % kv == 0 for kv in kv_heads)
    ]
    for name, size in sizes.items():
        if size % layout.tp:
            yield Problem("layout.tp", layout.tp, f"must divide {name}", one_of(fitting))
    for kv in sorted(kv_heads):
        if kv % layout.tp and layout.tp % kv:
            rule = f"must divide kv_heads={kv} or be a multiple of it"
            yield Problem("layout.tp", layout.tp, rule, one_of(fitting))
    if layout.sp and layout.tp == 1:
        yield Problem("layout.sp", True, "needs tp > 1, since it splits the sequence over tp", "set layout.sp to false")


def _split_over_tp(block: Block) -> Iterator[tuple[str, int]]:
    """What of a block tp ranks share out evenly, each with the field that says so."""
    match block.mixer:
        case Attention(heads=heads) | LatentAttention(heads=heads):
            yield f"heads={heads}", heads
        case GatedDeltaNet(key_heads=heads):
            yield f"key_heads={heads}", heads
        case Mamba2(groups=groups):
            yield f"groups={groups}", groups
    match block.feed_forward:
        case Mlp(ffn_hidden=width):
            yield f"ffn_hidden={width}", width
        case Moe(shared_ffn=int(width)):
            yield f"shared_ffn={width}", width


def _expert_parallel(job: Job) -> Iterator[Problem]:
    layout = job.layout
    moes = list(
        dict.fromkeys(run.block.feed_forward for run in job.model.blocks if isinstance(run.block.feed_forward, Moe))
    )
    if not moes:
        if layout.ep > 1:
            yield Problem("layout.ep", layout.ep, "needs a model with experts", "use 1")
        return
    for moe in moes:
        if moe.experts % layout.ep:
            yield Problem("layout.ep", layout.ep, f"must divide experts={moe.experts}", one_of(divisors(moe.experts)))
        if moe.ffn_hidden % layout.etp:
            rule = f"must divide the experts' ffn_hidden={moe.ffn_hidden}"
            yield Problem("layout.etp", layout.etp, rule, one_of(divisors(moe.ffn_hidden)))
        if moe.topk == 1 and moe.normalize_topk:
            rule = "with normalize_topk every weight is 1 and the router learns nothing"
            yield Problem("model.blocks.feed_forward.topk", 1, rule, "set normalize_topk to false")
    if layout.tp > 1 and not layout.sp:
        rule = f"must be true for a model with experts when tp={layout.tp} > 1"
        yield Problem("layout.sp", False, rule, "set layout.sp to true")


def _context_parallel(job: Job) -> Iterator[Problem]:
    layout, seq_len = job.layout, job.batch.seq_len
    if layout.cp == 1:
        return
    for mixer in dict.fromkeys(run.block.mixer for run in job.model.blocks):
        if isinstance(mixer, (GatedDeltaNet, Mamba2)):
            heads = mixer.groups if isinstance(mixer, Mamba2) else mixer.key_heads
            if heads % (layout.tp * layout.cp):
                rule = f"tp*cp={layout.tp * layout.cp} must divide the {heads} heads a scan shares out"
                yield Problem("layout.cp", layout.cp, rule, "use a smaller cp")
            continue
        if mixer is None:
            continue
        if layout.cp_algorithm == "ulysses" and mixer.heads % (layout.tp * layout.cp):
            rule = f"tp*cp={layout.tp * layout.cp} must divide heads={mixer.heads} under ulysses"
            yield Problem("layout.cp", layout.cp, rule, "use a smaller cp or layout.cp_algorithm='ring'")
        window = mixer.window if isinstance(mixer, Attention) else None
        if layout.cp_algorithm == "ring" and window is not None and window < seq_len:
            rule = f"cannot follow a window={window} shorter than seq_len={seq_len}"
            yield Problem("layout.cp_algorithm", "ring", rule, "use 'ulysses' or 'kv_allgather'")


def _sequence(job: Job) -> Iterator[Problem]:
    layout, batch, model = job.layout, job.batch, job.model
    if batch.seq_len > model.max_position:
        rule = f"must be <= model.max_position={model.max_position}, the longest sequence the model can hold"
        yield Problem(
            "batch.seq_len", batch.seq_len, rule, "shorten it, or raise model.max_position and scale its rope"
        )
    zigzag = layout.cp > 1 and layout.cp_algorithm != "ulysses"
    parts = layout.cp * (2 if zigzag else 1)
    if batch.seq_len % parts:
        rule = f"must be a multiple of {'2*cp' if zigzag else 'cp'}={parts}"
        yield Problem("batch.seq_len", batch.seq_len, rule, _multiples(batch.seq_len, parts))
    elif layout.sp and batch.seq_len // layout.cp % layout.tp:
        rule = f"must be a multiple of cp*tp={layout.cp * layout.tp} under sp"
        yield Problem("batch.seq_len", batch.seq_len, rule, _multiples(batch.seq_len, parts * layout.tp))


def _batch(job: Job) -> Iterator[Problem]:
    batch, step = job.batch, job.batch.mbs * job.dp
    if batch.gbs % step:
        rule = f"must be a multiple of mbs={batch.mbs} * dp={job.dp} = {step}"
        yield Problem("batch.gbs", batch.gbs, rule, _multiples(batch.gbs, step))


def _stages(job: Job) -> Iterator[Problem]:
    layout = job.layout
    yield from stage_problems(
        job.model.num_layers,
        pp=layout.pp,
        vpp=layout.chunks,
        stages=layout.stages,
        noop_layers=layout.noop_layers,
        placement=layout.placement,
    )


DUALPIPE = ("dualpipe_v", "dualpipe_v_split")


def _schedule(job: Job) -> Iterator[Problem]:
    layout, name = job.layout, job.layout.schedule_name
    if layout.vpp > 1 and layout.pp == 1:
        yield Problem("layout.vpp", layout.vpp, "needs pp > 1, since chunks alternate between ranks", "use 1")
    elif layout.vpp > 1 and name not in INTERLEAVED and name not in V_SHAPED:
        rule = f"runs one chunk a rank, not vpp={layout.vpp}"
        yield Problem("layout.schedule", name, rule, "use 'interleaved_1f1b' or leave it out")
    elif layout.vpp == 1 and name in INTERLEAVED:
        yield Problem("layout.schedule", name, "needs vpp > 1, chunks to interleave", "use '1f1b', or set layout.vpp")
    if layout.placement == "v":
        yield from _v_shaped(job)
    if name == "seq1f1b":
        yield from _sliced(job)
    elif layout.slices > 1:
        rule = f"are those of seq1f1b, which layout.schedule={name!r} is not"
        yield Problem("layout.slices", layout.slices, rule, "use 1, or set layout.schedule to 'seq1f1b'")


def _v_shaped(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed 028de58c, docs/features/dualpipev.md and features_manager, DualpipeVFeature."""
    layout, name = job.layout, job.layout.schedule_name
    if layout.pp == 1:
        yield Problem("layout.schedule", name, "needs pp > 1, ranks to go down and up", "use '1f1b'")
    if layout.vpp > 1:
        yield Problem("layout.vpp", layout.vpp, f"must be 1: {name} has two chunks a rank of its own", "use 1")
    if name not in DUALPIPE:
        return
    if layout.stages is not None:
        rule = f"must be left out: {name} has as many layers on every stage, num_layers a multiple of 2*pp"
        yield Problem("layout.stages", layout.stages, rule, "use 'zb_v', or add layout.noop_layers")
    if layout.cp > 1:
        yield Problem("layout.cp", layout.cp, f"must be 1 with {name}", "use 1 or 'zb_v'")
    if job.comm.overlap_grad_reduce:
        rule = f"must be false with {name}, whose pairs leave no backward to reduce beside"
        yield Problem("comm.overlap_grad_reduce", True, rule, "set it to false")


def _sliced(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed-LLM, docs/features/mindspore/seq1f1b.md: one sample a microbatch, no context parallelism."""
    layout, batch = job.layout, job.batch
    parts = layout.slices * (layout.tp if layout.sp else 1)
    if layout.slices == 1:
        yield Problem("layout.slices", 1, "must be > 1 with seq1f1b", "use 4, or '1f1b'")
    elif batch.seq_len % parts:
        rule = f"must be a multiple of {'slices*tp' if layout.sp else 'slices'}={parts} with seq1f1b"
        yield Problem("batch.seq_len", batch.seq_len, rule, _multiples(batch.seq_len, parts))
    if layout.cp > 1:
        yield Problem("layout.cp", layout.cp, "must be 1 with seq1f1b, which itself cuts the sequence", "use 1")
    if batch.mbs > 1:
        yield Problem("batch.mbs", batch.mbs, "must be 1 with seq1f1b", "use 1")


def _microbatches(job: Job) -> Iterator[Problem]:
    layout, batch = job.layout, job.batch
    if layout.pp == 1 or batch.gbs % (batch.mbs * job.dp):
        return
    count, step = job.num_microbatches, batch.mbs * job.dp
    if layout.schedule_name in DUALPIPE and count < 2 * layout.pp:
        rule = f"gives {count} microbatches; {layout.schedule_name} needs at least 2*pp={2 * layout.pp}"
        yield Problem("batch.gbs", batch.gbs, rule, f"raise it to {2 * layout.pp * step} or more")
    if layout.schedule_name == "zb_vpp" and layout.vpp > 1 and count % layout.pp:
        rule = f"gives {count} microbatches; zb_vpp needs a multiple of pp={layout.pp}"
        yield Problem("batch.gbs", batch.gbs, rule, _multiples(batch.gbs, layout.pp * step))
    if layout.vpp == 1 or layout.schedule_name != "interleaved_1f1b":
        return
    group = layout.microbatch_group_size or layout.pp
    if group < layout.pp:
        yield Problem("layout.microbatch_group_size", group, f"must be >= pp={layout.pp}", f"use {layout.pp}")
    elif group > count:
        rule = f"must be <= num_microbatches={count} (gbs={batch.gbs} / (mbs={batch.mbs} * dp={job.dp}))"
        way_out = f"raise batch.gbs to {group * step} or more"
        yield Problem("layout.microbatch_group_size", group, rule, way_out)
    elif 0 < count % group < layout.pp:
        rule = f"leaves {count % group} of num_microbatches={count} over; the rest must be 0 or >= pp={layout.pp}"
        fitting = [m for m in range(layout.pp, count + 1) if not 0 < count % m < layout.pp]
        way_out = f"set layout.microbatch_group_size from {{{', '.join(map(str, fitting))}}}, or change batch.gbs"
        yield Problem("layout.microbatch_group_size", group, rule, way_out)


def _recompute(job: Job) -> Iterator[Problem]:
    recompute = job.memory.recompute
    if isinstance(recompute, FullRecompute) and recompute.method == "uniform" and not any(_stages(job)):
        counts = {len(layers) for layers in stages_of(job).layers}
        layers = gcd(*counts)
        if layers % recompute.num_layers:
            rule = f"uniform groups must divide every stage's layers {sorted(counts)}"
            yield Problem("memory.recompute.num_layers", recompute.num_layers, rule, one_of(divisors(layers)))


def _stored_states(job: Job) -> Iterator[Problem]:
    """What MindSpeed's validators refuse: features_manager/memory and /optimizer of Ascend/MindSpeed 2.0.0."""
    memory, precision, recompute = job.memory, job.precision, job.memory.recompute
    if memory.swap_optimizer and not memory.distributed_optimizer:
        rule = "needs the distributed optimizer, whose shards it moves"
        yield Problem("memory.swap_optimizer", True, rule, "set memory.distributed_optimizer to true")
    if memory.swap_optimizer and precision.masters == "low_bits":
        rule = "moves masters, which precision.masters='low_bits' does not have"
        yield Problem("memory.swap_optimizer", True, rule, "set precision.masters to 'fp32'")
    if memory.swap_optimizer and precision.moments == "bf16":
        rule = "moves fp32 states, not precision.moments='bf16'"
        yield Problem("memory.swap_optimizer", True, rule, "set precision.moments to 'fp32'")
    if memory.swap_attention and job.adapter:
        rule = "cannot follow layers with adapters"
        yield Problem("memory.swap_attention", True, rule, "set it to false, or leave adapter out")
    if memory.swap_attention and isinstance(recompute, FullRecompute) and recompute.method == "uniform":
        rule = "has nothing to move when whole layers are recomputed"
        yield Problem("memory.swap_attention", True, rule, "set it to false, or memory.recompute.method to 'block'")
    if isinstance(recompute, FullRecompute) and recompute.stage_layers is not None:
        stages, counts = job.layout.pp * job.layout.vpp, recompute.stage_layers
        if len(counts) != stages or min(counts, default=0) < 0:
            rule = f"must be a count >= 0 for each of pp*vpp={stages} stages"
            yield Problem("memory.recompute.stage_layers", counts, rule)


def _adapters(job: Job) -> Iterator[Problem]:
    if (
        job.adapter
        and job.comm.moe_dispatcher == "allgather"
        and any(isinstance(run.block.feed_forward, Moe) for run in job.model.blocks)
    ):
        rule = "of experts need tokens sent to them one by one"
        yield Problem("adapter", "lora", rule, "set comm.moe_dispatcher to 'alltoall'")


def _learning_rate(job: Job) -> Iterator[Problem]:
    schedule, warmup = job.optimizer.lr_schedule, job.optimizer.warmup_steps
    end = None if isinstance(schedule, ConstantLr) else schedule.decay_steps
    path, end = ("run.steps", job.run.steps) if end is None else ("optimizer.lr_schedule.decay_steps", end)
    if warmup >= end:
        rule = f"must be < {path}={end}"
        yield Problem("optimizer.warmup_steps", warmup, rule, f"use at most {end - 1}")
    elif isinstance(schedule, WsdLr) and warmup + schedule.anneal_steps > end:
        rule = f"must leave room for warmup_steps={warmup} before {path}={end}"
        yield Problem("optimizer.lr_schedule.anneal_steps", schedule.anneal_steps, rule, f"use at most {end - warmup}")


def _pairs(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed, docs/features/megatron_moe/megatron-moe-fb-overlap.md."""
    layout, comm, path = job.layout, job.comm, "comm.moe_fb_overlap"
    if not any(isinstance(run.block.feed_forward, Moe) for run in job.model.blocks) or layout.ep == 1:
        yield Problem(path, True, "hides what experts exchange over ep > 1, and nothing else", "set it to false")
    if layout.schedule_name not in ("1f1b", "interleaved_1f1b", *DUALPIPE):
        rule = f"has no forwards beside backwards, which {path} runs together"
        yield Problem("layout.schedule", layout.schedule_name, rule, "use '1f1b', 'interleaved_1f1b' or 'dualpipe_v'")
    if layout.etp > 1:
        yield Problem("layout.etp", layout.etp, f"must be 1 with {path}", "use 1")
    if comm.moe_dispatcher != "alltoall":
        yield Problem("comm.moe_dispatcher", comm.moe_dispatcher, f"must be 'alltoall' with {path}", "use 'alltoall'")
    if comm.overlap_grad_reduce:
        yield Problem("comm.overlap_grad_reduce", True, f"must be false with {path}", "set it to false")


def _comm(job: Job) -> Iterator[Problem]:
    if job.comm.overlap_param_gather and not job.memory.distributed_optimizer:
        rule = "needs the distributed optimizer, whose parameters it gathers"
        yield Problem("comm.overlap_param_gather", True, rule, "set memory.distributed_optimizer to true")
    if job.comm.moe_fb_overlap:
        yield from _pairs(job)
    if job.comm.tp_overlap != "none" and not job.layout.sp:
        rule = "hides the gathers and scatters of sequence parallel, which is off"
        yield Problem("comm.tp_overlap", job.comm.tp_overlap, rule, "set layout.sp to true, or use 'none'")


def _neighbours(job: Job) -> Iterator[Problem]:
    """What reaches from one layer to the next stays within a stage."""
    if any(_stages(job)):
        return
    blocks = job.model.layers()
    for layers in stages_of(job).layers:
        own = [blocks[layer] for layer in layers]
        for index, block in enumerate(own):
            if isinstance(block.mixer, Attention) and block.mixer.shares_kv and not _made_below(own[:index]):
                rule = f"layer {layers[index]} has no layer below it on its stage whose keys and values it could share"
                yield Problem("model.blocks.mixer.shares_kv", True, rule, "set layout.stages to other counts")
        if own and own[-1].shortcut is not None:
            rule = f"the experts beside layer {layers[-1]} join after the next layer, which is not on its stage"
            yield Problem("model.blocks.shortcut", own[-1].shortcut.kind, rule, "set layout.stages to other counts")


def _made_below(blocks: list[Block]) -> bool:
    return any(isinstance(block.mixer, Attention) and not block.mixer.shares_kv for block in blocks)


def no_effect(job: Job) -> Iterator[str]:
    """Settings that are legal and do nothing in this job, a sentence each."""
    layout, recompute = job.layout, job.memory.recompute
    if layout.microbatch_group_size is not None and layout.schedule_name != "interleaved_1f1b":
        group = layout.microbatch_group_size
        yield f"layout.microbatch_group_size={group} has no effect with schedule {layout.schedule_name}"
    if layout.etp > 1 and not any(isinstance(run.block.feed_forward, Moe) for run in job.model.blocks):
        yield f"layout.etp={layout.etp} has no effect, since no layer holds experts"
    if job.memory.moe_balance > 1 and layout.ep == 1:
        yield f"memory.moe_balance={job.memory.moe_balance} has no effect with ep=1: a rank holds every expert"
    if job.adapter and job.precision.masters == "low_bits":
        yield "precision.masters='low_bits' saves next to nothing: only adapters have masters"
    if isinstance(recompute, SelectiveRecompute):
        kinds = {part.kind for run in job.model.blocks for part in (run.block.feed_forward, run.block.shortcut) if part}
        for module in recompute.modules:
            if module in ("mlp", "moe") and module not in kinds:
                yield f"memory.recompute.modules: {module!r} has no effect, since no layer holds one"


def _multiples(size: int, step: int) -> str:
    below, above = size // step * step, -(-size // step) * step
    return one_of((below, above) if below else (above,))


RULES: tuple[Rule, ...] = (
    _world,
    _mesh,
    _tensor_parallel,
    _expert_parallel,
    _context_parallel,
    _sequence,
    _batch,
    _stages,
    _schedule,
    _microbatches,
    _recompute,
    _stored_states,
    _adapters,
    _learning_rate,
    _comm,
    _neighbours,
)
NEEDS_DP: frozenset[Rule] = frozenset((_mesh, _batch, _microbatches))
