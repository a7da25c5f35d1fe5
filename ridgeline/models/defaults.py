"""What a preset leaves open, chosen by one rule that says what it chose and why.

* ``batch.seq_len``: 4096, or the longest sequence the model can hold if that is less.
* ``layout``: of the layouts with the smallest ``pp`` that fit by the plan, the one with the smallest ``tp``, within a
  node; experts are spread over as many devices of a node as divide them; ``sp`` where ``tp > 1``. If none fits, the one
  that needs the least memory.
* ``batch.gbs``: 16 microbatches a dp rank, or ``4*pp`` where that is more, so that the pipeline's bubble stays small.
* ``precision.params``: bf16, on a CPU fp32.

What is given stays, and the rest is chosen around it.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ridgeline.core.cluster import Cluster
from ridgeline.core.codec import Plain, structure
from ridgeline.core.errors import PlanError, SpecError, divisors
from ridgeline.core.job import Job
from ridgeline.core.model import Attention, Mlp, ModelSpec, Moe
from ridgeline.parallel.memory import RankMemory
from ridgeline.parallel.plan import plan

SEQ_LEN = 4096
MICROBATCHES = 16
GIB = 2**30


@attrs.frozen
class Split:
    """Degrees of a layout."""

    tp: int
    pp: int
    ep: int
    dp: int


def default_fields(plain: Plain, *, model: ModelSpec, cluster: Cluster) -> tuple[Plain, tuple[str, ...]]:
    """Fill in the precision, batch and layout of a job's plain data.

    Returns:
        The data, and a sentence for each choice.
    """
    notes: list[str] = []
    plain = {**plain, **{name: dict(plain.get(name) or {}) for name in ("layout", "batch", "precision")}}
    if "params" not in plain["precision"] and cluster.chip.device == "cpu":
        plain["precision"]["params"] = "fp32"
        notes.append("precision.params=fp32: on a CPU it is as fast as bf16")
    if "seq_len" not in plain["batch"]:
        seq_len = plain["batch"]["seq_len"] = min(SEQ_LEN, model.max_position)
        notes.append(f"batch.seq_len={seq_len}: {SEQ_LEN}, at most model.max_position={model.max_position}")
    best: tuple[Plain, Split, RankMemory | None] | None = None
    for split in _splits(model, cluster, plain["layout"]):
        filled = _filled(plain, split)
        peak = _peak(filled)
        if best is None or (peak and (best[2] is None or peak.total_bytes < best[2].total_bytes)):
            best = filled, split, peak
        if peak and peak.fits:
            break
    if best is None:
        return plain, tuple(notes)
    return best[0], (*notes, *_sentences(plain, *best))


def _filled(plain: Plain, split: Split) -> Plain:
    """The data with a split's degrees, and what follows from them, where they are not given."""
    batch, layout = plain["batch"], plain["layout"]
    degrees = {"tp": split.tp, "pp": split.pp, "ep": split.ep, "sp": split.tp > 1}
    mbs = batch.get("mbs", 1)
    sizes = {"gbs": mbs * split.dp * _microbatches(split)} if isinstance(mbs, int) else {}
    return {**plain, "layout": {**degrees, **layout}, "batch": {**sizes, **batch}}


def _microbatches(split: Split) -> int:
    return max(MICROBATCHES, 4 * split.pp)


def _peak(plain: Plain) -> RankMemory | None:
    """The fullest rank of a job's plan; None where there is no plan, whose faults are told when the job is planned."""
    try:
        return plan(structure(plain, Job)).peak
    except (SpecError, PlanError):
        return None


def _sentences(plain: Plain, filled: Plain, split: Split, peak: RankMemory | None) -> Iterator[str]:
    layout, batch = filled["layout"], filled["batch"]
    degrees = [f"{name}={layout[name]}" for name in ("tp", "pp", "ep") if name not in plain["layout"]]
    if degrees and peak:
        size = f"{peak.total_bytes / GIB:.1f} GiB of {peak.capacity_bytes / GIB:.0f} GiB a device"
        why = f"the smallest that fits, {size}" if peak.fits else f"none fits; the one that needs the least, {size}"
        yield f"layout.{', '.join(degrees)}: {why}"
    if "sp" not in plain["layout"] and layout["sp"]:
        yield "layout.sp=True: it splits activations over tp and sends no byte more"
    if "gbs" not in plain["batch"] and "gbs" in batch:
        yield f"batch.gbs={batch['gbs']}: {_microbatches(split)} microbatches for each of dp={split.dp} ranks"


def _splits(model: ModelSpec, cluster: Cluster, given: Mapping[str, Any]) -> Iterator[Split]:
    """Every split that divides what it has to, smallest pp first, then smallest tp."""
    world, cp, vpp = cluster.world_size, _degree(given, "cp") or 1, _degree(given, "vpp") or 1
    tps = [tp for tp in divisors(cluster.devices_per_node) if _divides(model, tp)]
    pps = [pp for pp in divisors(model.num_layers) if model.num_layers % (pp * vpp) == 0]
    tp_given, pp_given = _degree(given, "tp"), _degree(given, "pp")
    for pp, tp in itertools.product([pp_given] if pp_given else pps, [tp_given] if tp_given else tps):
        if world % (tp * pp * cp) == 0:
            dp = world // (tp * pp * cp)
            ep = _degree(given, "ep") or _expert_degree(model, cluster, ranks=tp * cp * dp)
            yield Split(tp, pp, ep, dp)


def _degree(given: Mapping[str, Any], name: str) -> int | None:
    """A degree that was given; one that cannot be is left to the job's own check."""
    value = given.get(name)
    return value if isinstance(value, int) and value >= 1 else None


def _divides(model: ModelSpec, tp: int) -> bool:
    """Whether tp divides the heads and widths of every block."""
    attentions = [run.block.mixer for run in model.blocks if isinstance(run.block.mixer, Attention)]
    mlps = [run.block.feed_forward for run in model.blocks if isinstance(run.block.feed_forward, Mlp)]
    return all(
        attention.heads % tp == 0 and (attention.kv_heads % tp == 0 or tp % attention.kv_heads == 0)
        for attention in attentions
    ) and all(mlp.ffn_hidden % tp == 0 for mlp in mlps)


def _expert_degree(model: ModelSpec, cluster: Cluster, *, ranks: int) -> int:
    """As many devices of a node as divide the experts and the ranks that hold them."""
    experts = [run.block.feed_forward.experts for run in model.blocks if isinstance(run.block.feed_forward, Moe)]
    if not experts:
        return 1
    return max(
        ep for ep in divisors(cluster.devices_per_node) if ranks % ep == 0 and all(count % ep == 0 for count in experts)
    )
