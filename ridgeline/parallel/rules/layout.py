"""Rules of a layout: its degrees, the sizes that they share out, and what must stay within a stage.

Source:
    megatron-core 0.16.1: parallel_state.py (``initialize_model_parallel``, ``RankGenerator``), transformer/moe/.
"""

from collections.abc import Iterator
from math import gcd

from ridgeline.core.errors import Problem, SpecError, divisors, multiples, one_of
from ridgeline.core.job import Job
from ridgeline.core.model import Attention, Block, GatedDeltaNet, LatentAttention, Mamba2, Mlp, Moe
from ridgeline.parallel.of_job import mesh_of, stages_of
from ridgeline.parallel.rules.pipeline import stages


def dp_exists(job: Job) -> bool:
    layout = job.layout
    return job.cluster.world_size % (layout.tp * layout.cp * layout.pp) == 0


def world(job: Job) -> Iterator[Problem]:
    layout, world = job.layout, job.cluster.world_size
    if not dp_exists(job):
        value = layout.tp * layout.cp * layout.pp
        rule = f"must divide world_size={world} (cluster.nodes={job.cluster.nodes} * {job.cluster.devices_per_node})"
        yield Problem("layout.tp*cp*pp", value, rule, one_of(divisors(world)))


def mesh(job: Job) -> Iterator[Problem]:
    try:
        mesh_of(job)
    except SpecError as error:
        yield from (problem.under("layout") for problem in error.problems)


def tensor_parallel(job: Job) -> Iterator[Problem]:
    layout = job.layout
    sizes: dict[str, int] = {}
    kv_heads: set[int] = set()
    for block in job.model.kinds:
        sizes.update(_split_over_tp(block))
        if isinstance(block.mixer, Attention):
            kv_heads.add(block.mixer.kv_heads)
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


def expert_parallel(job: Job) -> Iterator[Problem]:
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


def context_parallel(job: Job) -> Iterator[Problem]:
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
    for mixer in dict.fromkeys(block.mixer for block in job.model.kinds):
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


def sequence(job: Job) -> Iterator[Problem]:
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


def batch(job: Job) -> Iterator[Problem]:
    batch, step = job.batch, job.batch.mbs * job.dp
    if batch.gbs % step:
        rule = f"must be a multiple of mbs={batch.mbs} * dp={job.dp} = {step}"
        yield Problem("batch.gbs", batch.gbs, rule, multiples(batch.gbs, step))


def neighbours(job: Job) -> Iterator[Problem]:
    """What reaches from one layer to the next stays within a stage."""
    if any(stages(job)):
        return
    blocks = job.model.layers()
    for layers in stages_of(job).layers:
        own = [blocks[layer] for layer in layers]
        for index, block in enumerate(own):
            if block.shares_below and not any(_hands_on(below) for below in own[:index]):
                what, path = ("keys and values", "shares_kv")
                if isinstance(block.mixer, LatentAttention):
                    what, path = ("choice of positions", "indexer.shared")
                rule = f"layer {layers[index]} has no layer below it on its stage whose {what} it could share"
                yield Problem(f"model.blocks.mixer.{path}", True, rule, "set layout.stages to other counts")
        if own and own[-1].shortcut is not None:
            rule = f"the experts beside layer {layers[-1]} join after the next layer, which is not on its stage"
            yield Problem("model.blocks.shortcut", own[-1].shortcut.kind, rule, "set layout.stages to other counts")


def _hands_on(block: Block) -> bool:
    """Whether a layer makes keys and values, or a choice of positions, for those above."""
    latent = isinstance(block.mixer, LatentAttention) and block.mixer.indexer is not None
    return (latent or isinstance(block.mixer, Attention)) and not block.shares_below
