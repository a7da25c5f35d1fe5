"""What a preset leaves open, chosen by one rule that says what it chose and why.

* ``batch.seq_len``: 4096, or the longest sequence the model can hold if that is less.
* ``layout``: of the layouts with the smallest ``pp`` that fit by the plan, the one with the smallest ``tp``, within a
  node; experts are spread over as many devices of a node as divide them, over more nodes where they do not fit; ``sp``
  where ``tp > 1``; layers that do not divide are split one by one, the later stages holding more. If none fits, the one
  that needs the least memory.
* ``batch.gbs``: 16 microbatches a dp rank, or ``4*pp`` where that is more, so that the pipeline's bubble stays small.
* ``precision.params``: bf16, on a CPU fp32.

What is given stays, and the rest is chosen around it.
"""

import itertools
from collections.abc import Iterator

import attrs

from ridgeline.core.cluster import Cluster
from ridgeline.core.codec import Plain, structure
from ridgeline.core.errors import PlanError, divisors
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Mlp, ModelSpec
from ridgeline.parallel.memory import RankMemory
from ridgeline.parallel.plan import plan
from ridgeline.parallel.stages import even_counts

SEQ_LEN = 4096
MICROBATCHES = 16
GIB = 2**30


@frozen
class Split:
    """Degrees of a layout."""

    tp: int
    pp: int
    ep: int
    dp: int


def default_job(plain: Plain, *, model: ModelSpec, cluster: Cluster) -> tuple[Job, tuple[str, ...]]:
    """The job of plain data that may leave precision, batch and layout open.

    Returns:
        The job, and a sentence for each choice.

    Raises:
        SpecError: Every fault of the data.
    """
    plain = {**plain, **{name: dict(plain.get(name) or {}) for name in ("layout", "batch", "precision")}}
    given_layout, given_batch = frozenset(plain["layout"]), frozenset(plain["batch"])
    notes: list[str] = []
    if "params" not in plain["precision"] and cluster.chip.device == "cpu":
        plain["precision"]["params"] = "fp32"
        notes.append("precision.params=fp32: on a CPU it is as fast as bf16")
    if "seq_len" not in given_batch:
        seq_len = plain["batch"]["seq_len"] = min(SEQ_LEN, model.max_position)
        notes.append(f"batch.seq_len={seq_len}: {SEQ_LEN}, at most model.max_position={model.max_position}")
    job = structure(plain, Job)
    best: tuple[Job, Split, RankMemory | None] | None = None
    for split in _splits(model, cluster, job.layout, given_layout):
        laid_out = _laid_out(job, split, given_layout, given_batch)
        peak = _peak(laid_out)
        if best is None or (peak and (best[2] is None or peak.total_bytes < best[2].total_bytes)):
            best = laid_out, split, peak
        if peak and peak.fits:
            break
    if best is None:  # a batch that every dp divides, so that it hides no layout that would do
        sizes = {} if "gbs" in given_batch else {"gbs": job.batch.mbs * cluster.world_size * MICROBATCHES}
        return attrs.evolve(job, batch=attrs.evolve(job.batch, **sizes)), tuple(notes)
    return best[0], (*notes, *_sentences(*best, given_layout, given_batch))


def _laid_out(job: Job, split: Split, given_layout: frozenset[str], given_batch: frozenset[str]) -> Job:
    """The job with a split's degrees, and what follows from them, where they are not given."""
    degrees = {"tp": split.tp, "pp": split.pp, "ep": split.ep, "sp": split.tp > 1}
    layout = {name: value for name, value in degrees.items() if name not in given_layout}
    if not given_layout & {"stages", "noop_layers"}:
        counts = even_counts(job.model.num_layers, split.pp * job.layout.chunks)
        layout["stages"] = counts if len(set(counts)) > 1 else None
    sizes = {} if "gbs" in given_batch else {"gbs": job.batch.mbs * split.dp * _microbatches(split)}
    return attrs.evolve(job, layout=attrs.evolve(job.layout, **layout), batch=attrs.evolve(job.batch, **sizes))


def _microbatches(split: Split) -> int:
    return max(MICROBATCHES, 4 * split.pp)


def _peak(job: Job) -> RankMemory | None:
    """The fullest rank of a job's plan; None where there is no plan, whose faults are told when the job is planned."""
    try:
        return plan(job).peak
    except PlanError:
        return None


def _sentences(
    job: Job, split: Split, peak: RankMemory | None, given_layout: frozenset[str], given_batch: frozenset[str]
) -> Iterator[str]:
    degrees = [f"{name}={getattr(job.layout, name)}" for name in ("tp", "pp", "ep") if name not in given_layout]
    if degrees and peak:
        size = f"{peak.total_bytes / GIB:.1f} GiB of {peak.capacity_bytes / GIB:.0f} GiB a device"
        why = f"the smallest that fits, {size}" if peak.fits else f"none fits; the one that needs the least, {size}"
        yield f"layout.{', '.join(degrees)}: {why}"
    if "sp" not in given_layout and job.layout.sp:
        yield "layout.sp=True: it splits activations over tp and sends no byte more"
    if "gbs" not in given_batch:
        yield f"batch.gbs={job.batch.gbs}: {_microbatches(split)} microbatches for each of dp={split.dp} ranks"


def _splits(model: ModelSpec, cluster: Cluster, layout: Layout, given: frozenset[str]) -> Iterator[Split]:
    """Every split that divides what it has to: experts within a node first, then smallest pp, then smallest tp."""
    world, node = cluster.world_size, cluster.devices_per_node
    tps = [layout.tp] if "tp" in given else [tp for tp in divisors(node) if _divides(model, tp)]
    pps = [layout.pp] if "pp" in given else [pp for pp in divisors(world) if pp * layout.chunks <= model.num_layers]
    for wide, pp, tp in itertools.product((False, True), pps, tps):
        if world % (tp * pp * layout.cp) == 0:
            dp = world // (tp * pp * layout.cp)
            eps = [layout.ep] if "ep" in given else _expert_degrees(model, ranks=tp * layout.cp * dp)
            within = [ep for ep in eps if node % ep == 0] or eps[:1]
            beyond = [ep for ep in eps if ep > within[-1]]
            yield from (Split(tp, pp, ep, dp) for ep in (beyond if wide else within[-1:]))


def _divides(model: ModelSpec, tp: int) -> bool:
    """Whether tp divides the heads and widths of every block."""
    attentions = [block.mixer for block in model.kinds if isinstance(block.mixer, Attention)]
    mlps = [block.feed_forward for block in model.kinds if isinstance(block.feed_forward, Mlp)]
    return all(
        attention.heads % tp == 0 and (attention.kv_heads % tp == 0 or tp % attention.kv_heads == 0)
        for attention in attentions
    ) and all(mlp.ffn_hidden % tp == 0 for mlp in mlps)


def _expert_degrees(model: ModelSpec, *, ranks: int) -> list[int]:
    """What divides the experts and the ranks that hold them."""
    return [ep for ep in divisors(ranks) if all(moe.experts % ep == 0 for moe in model.moes)] if model.moes else [1]
