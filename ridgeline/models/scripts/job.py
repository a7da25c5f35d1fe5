"""The arguments of a launch as the plain data of a job, with the fate of every flag and every fault."""

import re
from types import MappingProxyType

import attrs

from ridgeline.core.codec import Plain
from ridgeline.core.errors import Problem
from ridgeline.core.frozen import frozen
from ridgeline.models.scripts.arguments import Entry, Reader, read_given, without_none
from ridgeline.models.scripts.comm import comm_of
from ridgeline.models.scripts.flags import is_neutral
from ridgeline.models.scripts.memory import memory_of, precision_of
from ridgeline.models.scripts.model import model_of
from ridgeline.models.scripts.shell import Command
from ridgeline.models.scripts.training import adapter_of, dropout_by_default, objective_of, optimizer_of

CP_ALGORITHMS = MappingProxyType(
    {"megatron_cp_algo": "ring", "ulysses_cp_algo": "ulysses", "kvallgather_cp_algo": "kv_allgather"}
    | {"hybrid_cp_algo": "hybrid", "a2a+p2p": "hybrid"}
    | {"p2p": "ring", "a2a": "ulysses", "all_gather": "kv_allgather", "allgather": "kv_allgather"}
)
"""MindSpeed's and Megatron's names to ours."""
CONTRADICTIONS = (
    ("bf16", "fp16"),
    ("num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank"),
    ("pipeline-model-parallel-layout", "num-layers-per-virtual-pipeline-stage"),
    ("pipeline-model-parallel-layout", "num-virtual-stages-per-pipeline-rank"),
    ("num-layer-list", "num-layers-per-virtual-pipeline-stage"),
    ("use-ascend-mc2", "use-ascend-coc"),
    ("recompute-in-advance", "recompute-in-bubble"),
    ("train-iters", "train-samples"),
)
"""Flags that upstream refuses together (Megatron-LM's validate_args; MindSpeed-LLM's TransformerBlockFeature)."""
PROFILE_LEVELS = MappingProxyType(
    {"level_none": "none", "level0": "level0", "level1": "level1", "level2": "level2"}
    | {"0": "level0", "1": "level1", "2": "level2"}
)
"""MindSpeed-LLM's names of levels, and those of its older scripts, to ours."""
A3_DEVICES = 16
"""Dies of an Atlas 900 A3 node; a node of Atlas A2 has 8 devices at most."""


@frozen
class Imported:
    """What a launch says: plain data of a job, the fate of each flag, and every fault."""

    plain: Plain
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


def import_command(command: Command) -> Imported:
    """The job that a launch describes. Defaults are Megatron-LM's, which differ from Ridgeline's.

    Source:
        NVIDIA/Megatron-LM core_v0.12.1, megatron/training/arguments.py; Ascend/MindSpeed-LLM, features_manager.
    """
    given, entries, problems = read_given(command.arguments)
    reader = Reader(given, problems)
    for one, other in CONTRADICTIONS:
        if reader.has(one) and reader.has(other):
            reader.fault(one, f"contradicts --{other}", "keep one of the two")
    cluster = _cluster(reader, command, entries)
    layout, batch = _layout(reader, cluster), _batch(reader)
    _check_world(reader, cluster, layout, batch)
    plain = {
        "model": model_of(reader, layout),
        "cluster": cluster,
        "layout": layout,
        "batch": batch,
        "precision": precision_of(reader),
        "memory": memory_of(reader),
        "comm": comm_of(reader),
        "optimizer": optimizer_of(reader),
        "objective": objective_of(reader),
        **without_none({"adapter": adapter_of(reader)}),
        "data": _data(reader),
        "run": _run(reader),
        **without_none({"profile": _profile(reader)}),
    }
    entries = [_fated(entry, reader) for entry in (*entries, *dropout_by_default(reader))]
    return Imported(plain, tuple(entries), tuple(dict.fromkeys(problems)))  # a flag that two fields need faults twice


def _fated(entry: Entry, reader: Reader) -> Entry:
    """The fate of a flag once its value is read."""
    name = entry.flag.removeprefix("--")
    if entry.fate == "not expressible" and is_neutral(name, entry.value):
        return attrs.evolve(entry, fate="no effect", note="this value asks for nothing")
    return attrs.evolve(entry, **reader.fates.get(name, {}))


def _cluster(reader: Reader, command: Command, entries: list[Entry]) -> Plain:
    launcher = dict(command.launcher)
    counts: dict[str, int] = {}
    for name in ("nnodes", "nproc_per_node", "worker_num", "local_worker_num"):
        text = launcher.get(name, "1")
        try:
            counts[name] = max(int(text), 1)
        except ValueError:
            way_out = "give it with --set NAME=VALUE" if "$" in text else ""
            reader.problems.append(Problem(f"launcher.{name}", text, "must be an integer", way_out))
            counts[name] = 1
    devices, nodes = counts["nproc_per_node"], counts["nnodes"]
    if "worker_num" in launcher:  # MindSpore's msrun
        devices = counts["local_worker_num"]
        nodes = max(counts["worker_num"] // devices, 1)
    preset = "atlas-900-a3" if devices == A3_DEVICES else "atlas-800t-a2"
    why = f"cluster: the script names no chip; {preset} is taken for {devices} ranks a node"
    entries.append(Entry("launcher", f"{nodes} x {devices}", "approximated", why))
    return {"preset": preset, "nodes": nodes, "devices_per_node": devices}


def _layout(reader: Reader, cluster: Plain) -> Plain:
    tp, pp, cp = (
        reader.integer(f"{name}-size", 1) or 1
        for name in ("tensor-model-parallel", "pipeline-model-parallel", "context-parallel")
    )
    ep = reader.integer("expert-model-parallel-size", 1) or 1
    etp = reader.integer("expert-tensor-parallel-size", tp if reader.has("num-experts") else 1) or 1
    if reader.has("moe-tp-extend-ep"):  # whole experts over ep*tp ranks, instead of each expert split over tp
        if not reader.has("num-experts"):
            reader.fault("moe-tp-extend-ep", "needs --num-experts, experts to place")
        if reader.has("expert-tensor-parallel-size") and etp > 1:
            reader.fault(
                "expert-tensor-parallel-size", "contradicts --moe-tp-extend-ep, which splits no expert", "use 1"
            )
        ep, etp = ep * tp, 1
    vpp, stages = _stages(reader, pp)
    noop = reader.integers("noop-layers")
    padded = reader.has("padded-vocab-size")
    return without_none(
        {
            "tp": tp,
            "pp": pp,
            "vpp": vpp,
            "cp": cp,
            "ep": ep,
            "etp": etp,
            "sp": _sequence_parallel(reader, tp),
            **_context_parallel(reader, cp),
            "stages": stages,
            "noop_layers": noop,
            **_schedule(reader),
            "microbatch_group_size": reader.integer("microbatch-group-size-per-virtual-pipeline-stage"),
            "vocab_multiple": 1 if padded else reader.integer("make-vocab-size-divisible-by", 128),
            "order": "tp-cp-ep-pp-dp" if reader.has("use-tp-pp-dp-mapping") else "tp-cp-ep-dp-pp",
        }
    )


def _context_parallel(reader: Reader, cp: int) -> Plain:
    """MindSpeed names the degree of the inner exchange, Megatron both degrees, the inner one first."""
    name = "cp-comm-type" if reader.has("cp-comm-type") else "context-parallel-algo"
    algorithm = CP_ALGORITHMS[reader.choice(name, CP_ALGORITHMS, "megatron_cp_algo")]
    plain = {"cp_algorithm": algorithm, "repeat_kv": reader.has("kv-head-repeat-before-uly-alltoall")}
    if algorithm != "hybrid":
        return plain
    inner, *_ = (*reader.text("hierarchical-context-parallel-sizes").split(), "")
    ulysses = int(inner) if inner.isdecimal() else reader.integer("ulysses-degree-in-cp", 1) or 1
    if not (1 < ulysses < cp and cp % ulysses == 0):
        rule = f"needs --ulysses-degree-in-cp, a divisor of the cp={cp} ranks between 1 and cp; it is {ulysses}"
        reader.fault(name, rule)
        return {**plain, "cp_algorithm": "ring"}
    return {**plain, "ulysses": ulysses}


def _sequence_parallel(reader: Reader, tp: int) -> bool:
    """Megatron-LM turns it off where there is no tensor parallelism (``validate_args``)."""
    if reader.has("sequence-parallel") and tp == 1:
        reader.lost("sequence-parallel", "layout.sp=false: with tp=1 Megatron-LM turns it off", "no effect")
    return reader.has("sequence-parallel") and tp > 1


def _schedule(reader: Reader) -> Plain:
    """The schedules that MindSpeed adds; without their flags Megatron-core's own."""
    if reader.choice("schedules-method", ("", "dualpipev"), "") == "dualpipev":
        return {"schedule": "dualpipe_v_split" if reader.has("dualpipev-dw-detach") else "dualpipe_v"}
    if reader.has("enable-seq1f1b"):
        return {"schedule": "seq1f1b", "slices": reader.integer("seq1f1b-splits", 4)}
    return {}


def _stages(reader: Reader, pp: int) -> tuple[int, list[int] | None]:
    """Chunks of a pipeline rank, and the layers of each stage where the script lists them."""
    if reader.has("pipeline-model-parallel-layout"):
        text = reader.text("pipeline-model-parallel-layout")
        if not re.fullmatch(r"[Etm\d*|,L]+", text):
            reader.fault("pipeline-model-parallel-layout", "must hold E, t, m, L, *N and | only")
            return 1, None
        counts = [sum(int(count or 1) for count in re.findall(r"t(?:\*(\d+))?", stage)) for stage in text.split("|")]
        if len(counts) % pp:
            reader.fault("pipeline-model-parallel-layout", f"has {len(counts)} stages: must be a multiple of pp={pp}")
            return 1, None
        return len(counts) // pp, counts
    stages = reader.integers("num-layer-list") or None
    if stages and len(stages) != pp:
        reader.fault("num-layer-list", f"has {len(stages)} counts: must have one for each of pp={pp} stages")
        stages = None
    layers = reader.integer("num-layers")
    each = reader.integer("num-layers-per-virtual-pipeline-stage")
    if each and layers:
        if layers % (pp * each):
            rule = f"times pp={pp} must divide num_layers={layers}"
            reader.fault("num-layers-per-virtual-pipeline-stage", rule)
            return 1, stages
        return layers // (pp * each), stages
    return reader.integer("num-virtual-stages-per-pipeline-rank", 1) or 1, stages


def _batch(reader: Reader) -> Plain:
    packed = reader.has("reset-position-ids") or reader.has("reset-attention-mask")
    sizes = {
        "seq_len": reader.integer("seq-length"),
        "mbs": reader.integer("micro-batch-size", 1),
        "gbs": reader.integer("global-batch-size"),
    }
    return {**without_none(sizes), "packing": "eod_reset" if packed else "none"}


def _check_world(reader: Reader, cluster: Plain, layout: Plain, batch: Plain) -> None:
    """Every rank has its place, every sample its rank; ``gbs`` is mbs*dp where it is not given, as upstream."""
    world = cluster["nodes"] * cluster["devices_per_node"]
    ranks = layout["tp"] * layout["pp"] * layout["cp"]
    if world % ranks:
        rule = f"must be a multiple of tp={layout['tp']} * pp={layout['pp']} * cp={layout['cp']} = {ranks}"
        rounded = (world + ranks - 1) // ranks * ranks
        reader.problems.append(Problem("world_size", world, rule, f"use {rounded} ranks, or smaller degrees"))
        batch.setdefault("gbs", 1)
        return
    samples = batch["mbs"] * (world // ranks)
    if batch.setdefault("gbs", samples) % samples:
        reader.fault("global-batch-size", f"must be a multiple of mbs*dp={samples}")


def _data(reader: Reader) -> Plain:
    words = reader.given.get("data-path", ())
    weighted = len(words) > 1 and len(words) % 2 == 0 and all(re.fullmatch(r"[\d.]+", word) for word in words[::2])
    pairs = [(float(words[i]), words[i + 1]) for i in range(0, len(words), 2)] if weighted else []
    sources = [{"path": path, "weight": weight} for weight, path in pairs]
    if words and not weighted:
        sources = [{"path": " ".join(words)}]
    shares = [share for share in re.split(r"[,\s]+", reader.text("split")) if re.fullmatch(r"[\d.]+", share)]
    tokenizer = reader.text("tokenizer-name-or-path") or reader.text("tokenizer-model") or None
    split = [*map(float, shares), 0.0, 0.0][:3] if shares else None
    return without_none({"sources": sources, "split": split, "tokenizer": tokenizer})


def _profile(reader: Reader) -> Plain | None:
    if not reader.has("profile"):
        return None
    words = reader.text("profile-ranks", "0").replace(",", " ").split()
    if not all(re.fullmatch(r"-?\d+", word) for word in words):
        reader.fault("profile-ranks", "must be integers")
        words = ["0"]
    level = reader.choice("profile-level", PROFILE_LEVELS, "level0")
    return {
        "start": reader.integer("profile-step-start", 10, minimum=0),
        "end": reader.integer("profile-step-end", 12),
        "ranks": [int(word) for word in words],
        "level": PROFILE_LEVELS[level],
        "cpu": reader.has("profile-with-cpu") or reader.has("profile-with-stack"),
        "stack": reader.has("profile-with-stack"),
        "memory": reader.has("profile-with-memory"),
        "shapes": reader.has("profile-record-shapes"),
        "output": reader.text("profile-save-path", "./profile_dir"),
    }


def _run(reader: Reader) -> Plain:
    validated = reader.integer("eval-iters", 100, minimum=0)
    return without_none(
        {
            "steps": reader.integer("train-iters"),
            "output": reader.text("save") or None,
            "save_every": reader.integer("save-interval"),
            "log_every": reader.integer("log-interval", 100),
            "valid_every": reader.integer("eval-interval", 1000) if validated else None,
            "valid_steps": validated or 1,
            "seed": reader.integer("seed", 1234, minimum=0),
            "async_save": reader.has("async-save"),
            "deterministic": reader.has("npu-deterministic") or reader.has("use-deter-comp"),
        }
    )
