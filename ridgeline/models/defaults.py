"""What a preset leaves open, chosen by one rule that says what it chose and why.

* ``batch.seq_len``: 4096, or the longest sequence the model can hold if that is less.
* ``layout``: the smallest ``pp``, then the smallest ``tp`` within a node, whose weights, gradients and optimizer state
  take at most 60 % of a device; experts are spread over as many devices of a node as divide them; ``sp`` where
  ``tp > 1``.
* ``batch.gbs``: 16 microbatches a dp rank, or ``4*pp`` where that is more, so that the pipeline's bubble stays small.
* ``precision.params``: bf16, on a CPU fp32.

What is given stays, and the rest is chosen around it.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ridgeline.core.cluster import Cluster
from ridgeline.core.codec import Plain
from ridgeline.core.errors import divisors
from ridgeline.core.model import Attention, Mlp, ModelSpec, Moe
from ridgeline.core.params import block_params

SEQ_LEN = 4096
STATES_SHARE = 0.6
MICROBATCHES = 16


@attrs.frozen
class Split:
    """Degrees of a layout that decide how much state a device holds."""

    tp: int
    pp: int
    ep: int
    dp: int


def default_fields(plain: Plain, *, model: ModelSpec, cluster: Cluster) -> tuple[Plain, tuple[str, ...]]:
    """Fill in the layout, batch and precision of a job's plain data.

    Returns:
        The data, and a sentence for each choice.
    """
    layout, batch, precision = (dict(plain.get(name) or {}) for name in ("layout", "batch", "precision"))
    notes: list[str] = []
    if "params" not in precision and cluster.chip.device == "cpu":
        precision["params"] = "fp32"
        notes.append("precision.params=fp32: a CPU computes fp32 as fast as bf16")
    if "seq_len" not in batch:
        batch["seq_len"] = min(SEQ_LEN, model.max_position)
        notes.append(f"batch.seq_len={batch['seq_len']}: {SEQ_LEN}, at most model.max_position={model.max_position}")
    split = choose_split(model, cluster, layout)
    if split:
        notes.extend(_fill_layout(layout, split, model=model, cluster=cluster))
        if "gbs" not in batch and isinstance(batch.get("mbs", 1), int):
            count = max(MICROBATCHES, 4 * split.pp)
            batch["gbs"] = batch.get("mbs", 1) * split.dp * count
            notes.append(f"batch.gbs={batch['gbs']}: {count} microbatches for each of dp={split.dp} ranks")
    return {**plain, "layout": layout, "batch": batch, "precision": precision}, tuple(notes)


def choose_split(model: ModelSpec, cluster: Cluster, given: Mapping[str, Any]) -> Split | None:
    """The first split that fits, else the one that leaves a device the least; None where nothing divides."""
    splits = list(_splits(model, cluster, given))
    budget = STATES_SHARE * _available_bytes(cluster)
    fitting = (split for split in splits if state_bytes(model, split) <= budget)
    return next(fitting, None) or min(splits, key=lambda split: state_bytes(model, split), default=None)


def state_bytes(model: ModelSpec, split: Split) -> float:
    """Weights in bf16, gradients in fp32, and master weights and moments sharded over dp: of the fullest stage.

    Example:
        >>> from ridgeline.models.zoo import model_preset
        >>> alone = Split(tp=1, pp=1, ep=1, dp=1)
        >>> round(state_bytes(model_preset("llama2-7b"), alone) / 6_738_415_616)  # bytes a parameter
        18
    """
    dense = expert = 0
    for run in model.blocks:
        for param in block_params(run.block, model.hidden):
            dense += 0 if param.experts else run.count * param.elements
            expert += run.count * param.elements if param.experts else 0
    tables = model.vocab_size * model.hidden * (1 if model.tied_embeddings or split.pp > 1 else 2)
    edp = split.tp * split.dp / split.ep
    return (dense / split.pp + tables) / split.tp * (6 + 12 / split.dp) + expert / (split.ep * split.pp) * (
        6 + 12 / edp
    )


def _fill_layout(layout: Plain, split: Split, *, model: ModelSpec, cluster: Cluster) -> Iterator[str]:
    degrees = {name: getattr(split, name) for name in ("tp", "pp", "ep") if name not in layout}
    layout.update(degrees)
    if "sp" not in layout and split.tp > 1:
        layout["sp"] = True
        yield "layout.sp=True: with tp it costs no communication more and splits activations"
    if degrees:
        need, have = state_bytes(model, split), _available_bytes(cluster)
        chosen = ", ".join(f"{name}={value}" for name, value in degrees.items() if name != "ep" or value > 1)
        fits = need <= STATES_SHARE * have
        sizes = f"weights, gradients and optimizer state of {need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB a device"
        why = f"the smallest with {sizes}, at most {STATES_SHARE:.0%}" if fits else f"the least there is: {sizes}"
        yield f"layout.{chosen}: {why}"


def _available_bytes(cluster: Cluster) -> int:
    return cluster.chip.hbm_bytes - cluster.chip.reserved_bytes


def _splits(model: ModelSpec, cluster: Cluster, given: Mapping[str, Any]) -> Iterator[Split]:
    world, cp = cluster.world_size, _degree(given, "cp") or 1
    tps = _degree(given, "tp"), [tp for tp in divisors(cluster.devices_per_node) if _divides_heads(model, tp)]
    stages = given.get("vpp", 1) if isinstance(given.get("vpp", 1), int) else 1
    pps = _degree(given, "pp"), [pp for pp in divisors(model.num_layers) if model.num_layers % (pp * stages) == 0]
    for pp, tp in itertools.product([pps[0]] if pps[0] else pps[1], [tps[0]] if tps[0] else tps[1]):
        if world % (tp * pp * cp) == 0:
            dp = world // (tp * pp * cp)
            yield Split(tp, pp, _degree(given, "ep") or _expert_degree(model, cluster, ranks=tp * cp * dp), dp)


def _degree(given: Mapping[str, Any], name: str) -> int | None:
    """A degree that was given; one that cannot be is left to the job's own check."""
    value = given.get(name)
    return value if isinstance(value, int) and value >= 1 else None


def _divides_heads(model: ModelSpec, tp: int) -> bool:
    attentions = [run.block.mixer for run in model.blocks if isinstance(run.block.mixer, Attention)]
    mlps = [run.block.feed_forward for run in model.blocks if isinstance(run.block.feed_forward, Mlp)]
    return all(
        attention.heads % tp == 0 and (attention.kv_heads % tp == 0 or tp % attention.kv_heads == 0)
        for attention in attentions
    ) and all(mlp.ffn_hidden % tp == 0 for mlp in mlps)


def _expert_degree(model: ModelSpec, cluster: Cluster, *, ranks: int) -> int:
    experts = [run.block.feed_forward.experts for run in model.blocks if isinstance(run.block.feed_forward, Moe)]
    if not experts:
        return 1
    fitting = [
        ep for ep in divisors(cluster.devices_per_node) if ranks % ep == 0 and all(count % ep == 0 for count in experts)
    ]
    return fitting[-1]
