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

from ridgeline.core.errors import PlanError, Problem, SpecError, divisors, multiples, one_of
from ridgeline.core.job import ConstantLr, FullRecompute, Job, SelectiveRecompute, WsdLr
from ridgeline.core.model import Attention, Block, GatedDeltaNet, LatentAttention, Mamba2, Mlp, Moe
from ridgeline.parallel import pipeline_rules
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.stages import StageMap, plan_stages

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
    degrees = {name: getattr(layout, name) for name in ("tp", "cp", "ep", "etp", "pp", "ulysses")}
    return Mesh(**degrees, dp=job.dp, order=layout.order)


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
    moes = job.model.moes
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
    if layout.cp_algorithm == "hybrid" and not (1 < layout.ulysses < layout.cp and layout.cp % layout.ulysses == 0):
        rule = (
            f"must divide cp={layout.cp} under hybrid, and leave groups of more than one rank and more than one group"
        )
        degrees = [str(degree) for degree in divisors(layout.cp)[1:-1]]
        way_out = f"use {', '.join(degrees)}" if degrees else "use layout.cp_algorithm='ring' and layout.ulysses=1"
        yield Problem("layout.ulysses", layout.ulysses, rule, way_out)
    elif layout.cp_algorithm != "hybrid" and layout.ulysses > 1:
        rule = f"goes with cp_algorithm='hybrid', not with {layout.cp_algorithm!r}"
        yield Problem("layout.ulysses", layout.ulysses, rule, "use 1, or layout.cp_algorithm='hybrid'")
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
        if layout.cp_algorithm == "hybrid" and mixer.heads % (layout.tp * layout.ulysses):
            rule = f"tp*ulysses={layout.tp * layout.ulysses} must divide heads={mixer.heads} under hybrid"
            yield Problem("layout.ulysses", layout.ulysses, rule, "use a smaller ulysses or layout.cp_algorithm='ring'")
        window = mixer.window if isinstance(mixer, Attention) else None
        if layout.cp_algorithm in ("ring", "hybrid") and window is not None and window < seq_len:
            rule = f"cannot follow a window={window} shorter than seq_len={seq_len}"
            yield Problem("layout.cp_algorithm", layout.cp_algorithm, rule, "use 'ulysses' or 'kv_allgather'")


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
        yield Problem("batch.seq_len", batch.seq_len, rule, multiples(batch.seq_len, parts))
    elif layout.sp and batch.seq_len // layout.cp % layout.tp:
        rule = f"must be a multiple of cp*tp={layout.cp * layout.tp} under sp"
        yield Problem("batch.seq_len", batch.seq_len, rule, multiples(batch.seq_len, parts * layout.tp))


def _batch(job: Job) -> Iterator[Problem]:
    batch, step = job.batch, job.batch.mbs * job.dp
    if batch.gbs % step:
        rule = f"must be a multiple of mbs={batch.mbs} * dp={job.dp} = {step}"
        yield Problem("batch.gbs", batch.gbs, rule, multiples(batch.gbs, step))


def _recompute(job: Job) -> Iterator[Problem]:
    recompute = job.memory.recompute
    if isinstance(recompute, FullRecompute) and recompute.method == "uniform" and not any(pipeline_rules.stages(job)):
        counts = {len(layers) for layers in stages_of(job).layers}
        layers = gcd(*counts)
        if layers % recompute.num_layers:
            rule = f"uniform groups must divide every stage's layers {sorted(counts)}"
            yield Problem("memory.recompute.num_layers", recompute.num_layers, rule, one_of(divisors(layers)))


def _recompute_when(job: Job) -> Iterator[Problem]:
    """Source: MindSpeed, docs/features/recompute_independent_pipelining.md."""
    memory, path = job.memory, "memory.recompute_when"
    if memory.recompute_when == "backward":
        return
    if job.layout.schedule_name != "interleaved_1f1b":
        rule = f"goes with interleaved 1F1B, not {job.layout.schedule_name}"
        yield Problem(path, memory.recompute_when, rule, "use 'backward', or set layout.vpp > 1")
    if memory.recompute_when == "advance" and not isinstance(memory.recompute, FullRecompute):
        yield Problem(path, "advance", "needs layers that are recomputed whole", "set memory.recompute.kind to 'full'")
    if memory.recompute_when == "bubble" and (memory.recompute is not None or memory.swap_attention):
        rule = "chooses by itself what to recompute, and excludes memory.recompute and memory.swap_attention"
        yield Problem(path, "bubble", rule, "leave these out, or use 'backward'")
    if job.comm.moe_fb_overlap:
        yield Problem(path, memory.recompute_when, "excludes comm.moe_fb_overlap", "use 'backward'")


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
    if job.adapter and job.comm.moe_dispatcher == "allgather" and job.model.moes:
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


def _comm(job: Job) -> Iterator[Problem]:
    if job.comm.overlap_param_gather and not job.memory.distributed_optimizer:
        rule = "needs the distributed optimizer, whose parameters it gathers"
        yield Problem("comm.overlap_param_gather", True, rule, "set memory.distributed_optimizer to true")
    if job.comm.moe_fb_overlap:
        yield from pipeline_rules.pairs(job)
    yield from _dispatch(job)
    if job.comm.tp_overlap != "none" and not job.layout.sp:
        rule = "hides the gathers and scatters of sequence parallel, which is off"
        yield Problem("comm.tp_overlap", job.comm.tp_overlap, rule, "set layout.sp to true, or use 'none'")


def _dispatch(job: Job) -> Iterator[Problem]:
    """Source: Ascend/MindSpeed 2.1.0, features_manager/moe."""
    layout, comm = job.layout, job.comm
    if comm.moe_dispatcher == "alltoall_seq" and job.model.moes and layout.etp > 1:
        path = "comm.moe_dispatcher"
        if layout.etp != layout.tp or not layout.order.startswith("tp"):
            rule = f"exchanges tokens for columns over tp={layout.tp}, which must be the ranks of etp={layout.etp}"
            yield Problem(path, comm.moe_dispatcher, rule, f"use 'alltoall', or layout.etp=1 or {layout.tp}")
        elif job.model.hidden % layout.etp:
            rule = (
                f"splits the hidden={job.model.hidden} columns of a token over etp={layout.etp}, which must divide it"
            )
            yield Problem(path, comm.moe_dispatcher, rule, "use 'alltoall'")
    if comm.moe_overlap and comm.moe_fb_overlap:
        rule = "excludes comm.moe_fb_overlap, which hides the same exchange behind another microbatch"
        yield Problem("comm.moe_overlap", comm.moe_overlap, rule, "keep one of the two")
    if "weight_gradients" in comm.moe_overlap and comm.tp_overlap == "mc2":
        rule = "excludes comm.tp_overlap='mc2'"
        yield Problem("comm.moe_overlap", comm.moe_overlap, rule, "leave 'weight_gradients' out, or use 'coc'")


def _neighbours(job: Job) -> Iterator[Problem]:
    """What reaches from one layer to the next stays within a stage."""
    if any(pipeline_rules.stages(job)):
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
    if layout.etp > 1 and not job.model.moes:
        yield f"layout.etp={layout.etp} has no effect, since no layer holds experts"
    if job.memory.moe_balance > 1 and layout.ep == 1:
        yield f"memory.moe_balance={job.memory.moe_balance} has no effect with ep=1: a rank holds every expert"
    yield from _idle_overlap(job)
    if job.adapter and job.precision.masters == "low_bits":
        yield "precision.masters='low_bits' saves next to nothing: only adapters have masters"
    if isinstance(recompute, SelectiveRecompute):
        blocks = [run.block for run in job.model.blocks]
        kinds = {part.kind for b in blocks for part in (b.mixer, b.feed_forward, b.shortcut) if part}
        for module in recompute.modules:
            needs = "latent_attention" if module == "mla_up_proj" else module
            if needs in ("mlp", "moe", "latent_attention") and needs not in kinds:
                yield f"memory.recompute.modules: {module!r} has no effect, since no layer holds one"


def _idle_overlap(job: Job) -> Iterator[str]:
    layout, comm, moes = job.layout, job.comm, job.model.moes
    if comm.moe_overlap and (not moes or layout.ep * (layout.etp if comm.moe_dispatcher == "allgather" else 1) == 1):
        yield f"comm.moe_overlap={comm.moe_overlap} has no effect: no tokens are sent to experts of other ranks"
    elif "shared_experts" in comm.moe_overlap and all(moe.shared_ffn is None for moe in moes):
        yield "comm.moe_overlap: 'shared_experts' has no effect, since no layer holds any"
    elif "permutation" in comm.moe_overlap and comm.moe_dispatcher != "allgather":
        yield "comm.moe_overlap: 'permutation' has no effect where tokens are not gathered"


RULES: tuple[Rule, ...] = (
    _world,
    _mesh,
    _tensor_parallel,
    _expert_parallel,
    _context_parallel,
    _sequence,
    _batch,
    pipeline_rules.stages,
    pipeline_rules.schedule,
    pipeline_rules.microbatches,
    _recompute,
    _recompute_when,
    _stored_states,
    _adapters,
    _learning_rate,
    _comm,
    _neighbours,
)
NEEDS_DP: frozenset[Rule] = frozenset((_mesh, _batch, pipeline_rules.microbatches))
