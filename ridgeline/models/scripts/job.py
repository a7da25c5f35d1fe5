"""The arguments of a launch as the plain data of a job, with the fate of every flag and every fault."""

import re
from collections.abc import Iterator
from types import MappingProxyType

import attrs

from ridgeline.core.codec import Plain
from ridgeline.core.errors import Problem
from ridgeline.core.fields import item_annotation, literal_choices
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Lora
from ridgeline.models.scripts.arguments import Entry, Reader, read_given, without_none
from ridgeline.models.scripts.flags import FLAGS, is_neutral
from ridgeline.models.scripts.model import model_of
from ridgeline.models.scripts.shell import Command

CP_ALGORITHMS = MappingProxyType(
    {"megatron_cp_algo": "ring", "ulysses_cp_algo": "ulysses", "kvallgather_cp_algo": "kv_allgather"}
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
DROPOUTS = ("hidden-dropout", "attention-dropout")
PART_NAMES = MappingProxyType(
    {name: name for name in ("core_attn", "mlp", "moe", "layernorm")} | {"moe_act": "activation"}
)
"""Megatron's names of parts to ours."""
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
        "precision": _precision(reader),
        "memory": _memory(reader),
        "comm": _comm(reader),
        "optimizer": _optimizer(reader),
        "objective": _objective(reader),
        **without_none({"adapter": _adapter(reader)}),
        "data": _data(reader),
        "run": _run(reader),
    }
    entries = [_fated(entry, reader) for entry in (*entries, *_dropped_by_default(reader))]
    return Imported(plain, tuple(entries), tuple(dict.fromkeys(problems)))  # a flag that two fields need faults twice


def _fated(entry: Entry, reader: Reader) -> Entry:
    """The fate of a flag once its value is read."""
    name = entry.flag.removeprefix("--")
    if entry.fate == "not expressible" and is_neutral(name, entry.value):
        return attrs.evolve(entry, fate="no effect", note="this value asks for nothing")
    return attrs.evolve(entry, **reader.fates.get(name, {}))


def _dropped_by_default(reader: Reader) -> Iterator[Entry]:
    """Dropout, with which Megatron-LM trains unless told otherwise."""
    for name in DROPOUTS:
        if not reader.has(name):
            yield Entry(f"--{name}", "", FLAGS[name].fate, f"{FLAGS[name].note}: 0.1, since it is not given")


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
    cp_name = "cp-comm-type" if reader.has("cp-comm-type") else "context-parallel-algo"
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
            "cp_algorithm": CP_ALGORITHMS[reader.choice(cp_name, CP_ALGORITHMS, "megatron_cp_algo")],
            "stages": stages,
            "noop_layers": noop,
            **_schedule(reader),
            "microbatch_group_size": reader.integer("microbatch-group-size-per-virtual-pipeline-stage"),
            "vocab_multiple": 1 if padded else reader.integer("make-vocab-size-divisible-by", 128),
            "order": "tp-cp-ep-pp-dp" if reader.has("use-tp-pp-dp-mapping") else "tp-cp-ep-dp-pp",
        }
    )


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


def _precision(reader: Reader) -> Plain:
    params = "bf16" if reader.has("bf16") else "fp16" if reader.has("fp16") else "fp32"
    # Megatron accumulates bf16 gradients in fp32 unless told otherwise, and fp16 ones in fp16.
    half_grads = reader.has("grad-reduce-in-bf16") or reader.has("o2-gradient")
    if params == "fp16":
        half_grads = not reader.has("accumulate-allreduce-grads-in-fp32")
    return {
        "params": params,
        "grads": params if half_grads and params != "fp32" else "fp32",
        "masters": "low_bits" if reader.has("reuse-fp32-param") else "fp32",
        "moments": "bf16" if reader.has("o2-optimizer") else "fp32",
    }


def _memory(reader: Reader) -> Plain:
    memory: Plain = {
        "distributed_optimizer": reader.has("use-distributed-optimizer"),
        "swap_optimizer": reader.has("swap-optimizer"),
        "swap_attention": _swaps_attention(reader),
        "recompute": _recompute(reader),
        "recompute_when": _recompute_when(reader),
        "loss_chunk": reader.integer("loss-chunk-size", 1024) if reader.text("loss-compute-mode") == "chunk" else None,
    }
    return without_none(memory)


def _swaps_attention(reader: Reader) -> bool:
    """What whole layers recompute is not saved, so that there is nothing to move."""
    whole = reader.text("recompute-granularity") == "full"
    if reader.has("swap-attention") and whole:
        reader.lost("swap-attention", "memory.swap_attention=false: whole layers are recomputed", "no effect")
    return reader.has("swap-attention") and not whole


def _recompute_when(reader: Reader) -> str:
    for word in ("advance", "bubble"):
        if reader.has(f"recompute-in-{word}"):
            return word
    return "backward"


def _recompute(reader: Reader) -> Plain | None:
    granularity = reader.text("recompute-granularity")
    if granularity and granularity not in ("full", "selective"):
        reader.fault("recompute-granularity", "unknown", "use full or selective")
    parts = {"recompute-activation-function": "activation", "recompute-norm": "layernorm"}
    modules = [part for flag, part in parts.items() if reader.has(flag)]
    level = reader.text("moe-zero-memory", "disable")
    modules += {"level0": ["activation"], "level1": ["activation", "dispatch"]}.get(level, [])
    modules = [*dict.fromkeys(modules)]
    if granularity == "full":
        if not reader.has("recompute-method"):
            reader.fault("recompute-method", "is missing: full recompute needs it", "use uniform or block")
        method, layers = reader.text("recompute-method", "uniform"), reader.integer("recompute-num-layers", 1)
        by_rank = method == "block" and reader.has("enable-recompute-layers-per-pp-rank")
        whole = {"kind": "full", "method": method, "num_layers": layers, "per": "rank" if by_rank else "stage"}
        return {**whole, "modules": modules if method == "block" else []}
    if granularity == "selective" or reader.has("recompute-activations"):
        asked = reader.text("recompute-modules", "core_attn").split()
        known = [PART_NAMES.get(name, name) for name in asked if name in PART_NAMES]
        if len(known) != len(asked):
            reader.lost("recompute-modules", f"of these a job has words for {known} only")
        modules = [*dict.fromkeys((*known, *modules))]
    if not modules:
        return None
    counts = {flag: reader.integer(f"{flag}-num-layers", minimum=0) for flag in parts if reader.has(flag)}
    least = [count for count in counts.values() if count is not None]
    if least and (len(set(counts.values())) > 1 or "core_attn" in modules):
        for flag in counts:
            reader.lost(f"{flag}-num-layers", "memory.recompute.num_layers: one count for all parts", "approximated")
    if least and min(least) == 0:
        return None
    return without_none({"kind": "selective", "modules": modules, "num_layers": min(least, default=None)})


def _comm(reader: Reader) -> Plain:
    dispatcher = reader.text("moe-token-dispatcher-type", "allgather")
    if dispatcher == "alltoall_seq":
        reader.lost("moe-token-dispatcher-type", "comm.moe_dispatcher: taken as alltoall", "approximated")
        dispatcher = "alltoall"
    elif dispatcher not in ("alltoall", "allgather"):
        reader.lost("moe-token-dispatcher-type", f"{dispatcher} has no word in a job; alltoall stands in its place")
        dispatcher = "alltoall"
    return {
        "overlap_grad_reduce": reader.has("overlap-grad-reduce"),
        "overlap_param_gather": reader.has("overlap-param-gather"),
        "moe_dispatcher": dispatcher,
        "p2p": "batched" if reader.has("no-overlap-p2p-communication") else "overlapped",
        "tp_overlap": _tp_overlap(reader),
        "moe_fb_overlap": reader.has("moe-fb-overlap"),
    }


def _tp_overlap(reader: Reader) -> str:
    asked = "mc2" if reader.has("use-ascend-mc2") else "coc" if reader.has("use-ascend-coc") else "none"
    tp = reader.integer("tensor-model-parallel-size", 1) or 1
    return asked if reader.has("sequence-parallel") and tp > 1 else "none"


def _optimizer(reader: Reader) -> Plain:
    kind = reader.text("lr-decay-style", "linear")
    style = {"constant": "constant", "linear": "linear", "cosine": "cosine", "WSD": "wsd"}
    decay = reader.integer("lr-decay-iters")
    schedule: Plain = {"kind": style[reader.choice("lr-decay-style", style, "linear")]}
    if schedule["kind"] != "constant" and decay:
        schedule["decay_steps"] = decay
    if kind == "WSD":
        schedule["anneal_steps"] = reader.integer("lr-wsd-decay-iters", 1)
        schedule["style"] = reader.text("lr-wsd-decay-style", "exponential")
    share = reader.real("lr-warmup-fraction", 0.0) or 0.0
    if share and reader.integer("lr-warmup-iters", minimum=0):
        reader.fault("lr-warmup-fraction", "contradicts --lr-warmup-iters", "keep one of the two")
    steps = decay or reader.integer("train-iters") or 0
    return without_none(
        {
            "lr": reader.real("lr"),
            "min_lr": reader.real("min-lr", 0.0),
            "lr_schedule": schedule,
            "warmup_steps": int(share * steps) if share else reader.integer("lr-warmup-iters", 0, minimum=0),
            "weight_decay": reader.real("weight-decay", 0.01),
            "beta1": reader.real("adam-beta1", 0.9),
            "beta2": reader.real("adam-beta2", 0.999),
            "eps": reader.real("adam-eps", 1e-8),
            "clip_grad": reader.real("clip-grad", 1.0),
        }
    )


def _objective(reader: Reader) -> Plain:
    stage = reader.text("stage")
    per_token = reader.has("calculate-per-token-loss")
    padded = not (reader.has("no-pad-to-seq-lengths") or reader.has("variable-seq-lengths"))
    tuned = bool(stage) or reader.has("is-instruction-dataset")
    dropout = _dropout(reader, tuned=tuned)
    if stage in ("dpo", "simpo"):
        loss = "simpo" if stage == "simpo" else reader.choice("dpo-loss-type", ("sigmoid", "hinge", "ipo"), "sigmoid")
        numbers = {"beta": reader.real("dpo-beta"), "label_smoothing": reader.real("dpo-label-smoothing")}
        return {"kind": "dpo", "loss": loss, "padded": padded, **without_none(numbers)}
    if stage and stage != "sft":
        reader.lost("stage", f"{stage} has no word in a job; it is taken as sft")
    if tuned:
        return {"kind": "sft", "per_token": per_token, "padded": padded}
    return {"kind": "pretraining", "per_token": per_token, "dropout": dropout}


def _dropout(reader: Reader, *, tuned: bool) -> float:
    """The share that is dropped; a job has one for attention's weights and the stream, and none in fine-tuning."""
    shares = [_share(reader, name) for name in DROPOUTS]
    largest = max(shares)
    for name in DROPOUTS:
        if tuned and largest:
            reader.lost(name, "fine-tuning has no word for dropout; it trains without")
        elif len(set(shares)) > 1:
            reader.lost(name, f"objective.dropout: one share for both, {largest}", "approximated")
    return largest


def _share(reader: Reader, name: str) -> float:
    """Of a flag's words the first, as its parser reads them."""
    word = (reader.given.get(name) or ("0.1",))[0]
    try:
        return float(word)
    except ValueError:
        reader.fault(name, "must be a number")
        return 0.0


def _adapter(reader: Reader) -> Plain | None:
    if not reader.has("lora-r"):
        return None
    old = {"query_key_value": "linear_qkv", "dense": "linear_proj"}  # names before Megatron-core's
    old |= {"dense_h_to_4h": "linear_fc1", "dense_4h_to_h": "linear_fc2"}
    asked = [old.get(name, name) for name in reader.text("lora-target-modules").split()]
    words = literal_choices(item_annotation(attrs.fields_dict(Lora)["targets"].type))
    targets = [name for name in asked if name in words]
    if len(targets) != len(asked):
        reader.lost("lora-target-modules", f"of these a job has words for {targets or 'none, so all it has'} only")
    return without_none(
        {
            "kind": "lora",
            "rank": reader.integer("lora-r", 16),
            "alpha": reader.real("lora-alpha", 32.0),
            "targets": targets or None,
            "base": "nf4" if reader.has("qlora") else "params",
        }
    )


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
        }
    )
