"""The arguments of a launch as the plain data of a job, with the fate of every flag and every fault."""

import ast
import math
import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from ridgeline.core.codec import Plain
from ridgeline.core.errors import Problem
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.models.scripts.flags import FLAGS, Fate
from ridgeline.models.scripts.shell import Command
from ridgeline.models.zoo import model_names, model_preset

Number = TypeVar("Number", int, float)
CP_ALGORITHMS = MappingProxyType(
    {"megatron_cp_algo": "ring", "ulysses_cp_algo": "ulysses", "kvallgather_cp_algo": "kv_allgather"}
    | {"p2p": "ring", "a2a": "ulysses", "all_gather": "kv_allgather", "allgather": "kv_allgather"}
)
"""MindSpeed's and Megatron's names to ours."""
A3_DEVICES = 16
"""Dies of an Atlas 900 A3 node; a node of Atlas A2 has 8 devices at most."""


@frozen
class Entry:
    """The fate of one flag of a script."""

    flag: str
    value: str
    fate: Fate
    note: str

    def __str__(self) -> str:
        return f"{f'{self.flag} {self.value}'.strip()}: {self.note}"


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
    given, entries, problems = _given(command.arguments)
    reader = _Reader(given, problems)
    cluster = _cluster(reader, command, entries)
    layout, batch = _layout(reader, cluster), _batch(reader)
    _check_world(reader, cluster, layout, batch)
    plain = {
        "model": _model(reader, layout),
        "cluster": cluster,
        "layout": layout,
        "batch": batch,
        "precision": _precision(reader),
        "memory": _memory(reader),
        "comm": _comm(reader),
        "optimizer": _optimizer(reader),
        "objective": {"kind": "pretraining", "per_token": reader.has("calculate-per-token-loss")},
        "data": _data(reader),
        "run": _run(reader),
    }
    entries = [attrs.evolve(entry, **reader.fates.get(entry.flag[2:], {})) for entry in entries]
    return Imported(plain, tuple(entries), tuple(problems))


def named(job: Job) -> Job:
    """The job with its model of the family and, where only one matches, the name of the published one it equals."""
    published = [model_preset(name) for name in model_names()]
    equal = [one for one in published if attrs.evolve(job.model, name=one.name, family=one.family) == one]
    if len({one.family for one in equal}) != 1:
        return job
    name = equal[0].name if len(equal) == 1 else job.model.name
    return attrs.evolve(job, model=attrs.evolve(equal[0], name=name))


def _given(arguments: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[Entry], list[Problem]]:
    """Flags with their values, their fates by the table, and faults of form."""
    groups: list[tuple[str, list[str]]] = []
    entries: list[Entry] = []
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("_", "-"), [value] if equals else []))
        elif word.startswith("$") and (not groups or groups[-1][1] or _takes(groups[-1][0]) == "nothing"):
            entries.append(Entry(word, "", "not understood", "the script does not say what it holds; taken as nothing"))
        elif groups:
            groups[-1][1].append(word)
        else:
            entries.append(Entry(word, "", "not understood", "stands before the first flag"))
    given: dict[str, tuple[str, ...]] = {}
    problems: list[Problem] = []
    for spelled, values in groups:
        name, text = _full_name(spelled), " ".join(values)
        flag = FLAGS.get(name)
        if flag is None:
            entries.append(Entry(f"--{name}", text, "not understood", "no flag that Ridgeline knows"))
            continue
        if flag.takes == "nothing" and values:
            problems.append(Problem(f"--{name}", text, "takes no value"))
        if flag.takes == "one" and len(values) != 1:
            problems.append(Problem(f"--{name}", text, "takes one value"))
            continue
        if name in given and given[name] != tuple(values):  # argparse lets the last one count
            before = next(i for i, entry in enumerate(entries) if entry.flag == f"--{name}" and entry.fate == flag.fate)
            entries[before] = Entry(f"--{name}", entries[before].value, "no effect", f"--{name} {text} follows it")
        given[name] = tuple(values)
        entries.append(Entry(f"--{name}", text, flag.fate, flag.note))
    return given, entries, problems


def _full_name(name: str) -> str:
    """The flag of which this is the only beginning, as argparse reads it."""
    whole = [known for known in FLAGS if known.startswith(name)]
    return whole[0] if name not in FLAGS and len(whole) == 1 else name


def _takes(name: str) -> str:
    flag = FLAGS.get(_full_name(name))
    return flag.takes if flag else "many"


class _Reader:
    """Values of flags by type; faults are collected, and fates that depend on the value noted."""

    def __init__(self, given: dict[str, tuple[str, ...]], problems: list[Problem]) -> None:
        self.given, self.problems = given, problems
        self.fates: dict[str, dict[str, Any]] = {}

    def has(self, name: str) -> bool:
        return name in self.given

    def text(self, name: str, default: str = "") -> str:
        return " ".join(self.given[name]) if self.given.get(name) else default

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int | None:
        value = self._number(name, int, default)
        if name in self.given and value is not None and value < minimum:
            self.problems.append(Problem(f"--{name}", value, f"must be >= {minimum}"))
            return default
        return value

    def real(self, name: str, default: float | None = None) -> float | None:
        return self._number(name, float, default)

    def integers(self, name: str) -> list[int]:
        try:
            return [int(word) for word in self.text(name).split(",") if word]
        except ValueError:
            self.problems.append(Problem(f"--{name}", self.text(name), "must be integers with commas between"))
            return []

    def choice(self, name: str, known: Any, default: str) -> str:
        """The value if it is known; else the default, told as not expressible."""
        value = self.text(name, default)
        if value in known:
            return value
        self.lost(name, f"{value} has no word in a job; {default} stands in its place")
        return default

    def lost(self, name: str, note: str, fate: Fate = "not expressible") -> None:
        self.fates[name] = {"fate": fate, "note": note}

    def fault(self, name: str, rule: str, way_out: str = "") -> None:
        self.problems.append(Problem(f"--{name}", self.text(name) or None, rule, way_out))

    def _number(self, name: str, kind: type[Number], default: Number | None) -> Number | None:
        if name not in self.given:
            return default
        text = self.text(name)
        try:
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError(text)
            return value
        except ValueError:
            unset = "the script does not say it; " if "$" in text else ""
            rule = f"{unset}must be {'an integer' if kind is int else 'a number'}"
            self.problems.append(Problem(f"--{name}", text, rule, "give it with --set NAME=VALUE" if unset else ""))
            return default


def _without_none(table: Plain) -> Plain:
    return {name: value for name, value in table.items() if value is not None}


def _cluster(reader: _Reader, command: Command, entries: list[Entry]) -> Plain:
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


def _layout(reader: _Reader, cluster: Plain) -> Plain:
    tp, pp, cp = (
        reader.integer(f"{name}-size", 1) or 1
        for name in ("tensor-model-parallel", "pipeline-model-parallel", "context-parallel")
    )
    ep = reader.integer("expert-model-parallel-size", 1) or 1
    etp = reader.integer("expert-tensor-parallel-size", tp if reader.has("num-experts") else 1) or 1
    if reader.has("moe-tp-extend-ep"):
        ep, etp = ep * tp, 1
    vpp, stages = _stages(reader, pp)
    cp_name = "cp-comm-type" if reader.has("cp-comm-type") else "context-parallel-algo"
    noop = reader.integers("noop-layers")
    padded = reader.has("padded-vocab-size")
    return _without_none(
        {
            "tp": tp,
            "pp": pp,
            "vpp": vpp,
            "cp": cp,
            "ep": ep,
            "etp": etp,
            "sp": reader.has("sequence-parallel"),
            "cp_algorithm": CP_ALGORITHMS[reader.choice(cp_name, CP_ALGORITHMS, "megatron_cp_algo")],
            "stages": stages,
            "noop_layers": noop,
            "microbatch_group_size": reader.integer("microbatch-group-size-per-virtual-pipeline-stage"),
            "vocab_multiple": 1 if padded else reader.integer("make-vocab-size-divisible-by", 128),
            "order": "tp-cp-ep-pp-dp" if reader.has("use-tp-pp-dp-mapping") else "tp-cp-ep-dp-pp",
        }
    )


def _stages(reader: _Reader, pp: int) -> tuple[int, list[int] | None]:
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


def _batch(reader: _Reader) -> Plain:
    packed = reader.has("reset-position-ids") or reader.has("reset-attention-mask")
    sizes = {
        "seq_len": reader.integer("seq-length"),
        "mbs": reader.integer("micro-batch-size", 1),
        "gbs": reader.integer("global-batch-size"),
    }
    return {**_without_none(sizes), "packing": "eod_reset" if packed else "none"}


def _check_world(reader: _Reader, cluster: Plain, layout: Plain, batch: Plain) -> None:
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


def _model(reader: _Reader, layout: Plain) -> Plain:
    layers = reader.integer("num-layers")
    hidden = reader.integer("hidden-size")
    heads = reader.integer("num-attention-heads")
    for name, value in (("num-layers", layers), ("hidden-size", hidden), ("num-attention-heads", heads)):
        if value is None and not reader.has(name):
            reader.fault(name, "is missing: without it there is no model")
    if reader.text("normalization", "LayerNorm") != "RMSNorm":
        reader.lost("normalization", "only RMSNorm has a word in a job; it stands in its place")
    if reader.text("position-embedding-type", "rope") != "rope":
        reader.lost("position-embedding-type", "only rope has a word in a job; it stands in its place")
    vocab_size = reader.integer("padded-vocab-size") or reader.integer("vocab-size")
    model: Plain = {
        "vocab_size": vocab_size,
        "hidden": hidden,
        "max_position": reader.integer("max-position-embeddings") or reader.integer("seq-length"),
        "norm_eps": reader.real("norm-epsilon", 1e-5),
        "tied_embeddings": not reader.has("untie-embeddings-and-output-weights"),
        "mtp": reader.integer("mtp-num-layers", 0, minimum=0),
        "init_std": reader.real("init-method-std", 0.02),
    }
    if layers and hidden and heads:
        mixer = _mixer(reader, hidden, heads)
        runs = [_feed_forward(reader, hidden, moe=moe) for moe in _moe_layers(reader, layers, layout["noop_layers"])]
        model["blocks"] = [{"block": {"mixer": mixer, "feed_forward": run}, "count": 1} for run in runs]
    return _without_none(model)


def _mixer(reader: _Reader, hidden: int, heads: int) -> Plain:
    rope = {"base": reader.real("rotary-base", 10000.0), "scaling": _scaling(reader)}
    if reader.has("multi-latent-attention"):
        nope = "qk-nope-head-dim" if reader.has("qk-nope-head-dim") else "qk-head-dim"
        turned = "qk-rope-head-dim" if reader.has("qk-rope-head-dim") else "qk-pos-emb-head-dim"
        return {
            "kind": "latent_attention",
            "heads": heads,
            **_without_none({"q_lora_rank": reader.integer("q-lora-rank")}),
            "kv_lora_rank": reader.integer("kv-lora-rank", 32),
            "nope_head_dim": reader.integer(nope, 128),
            "rope_head_dim": reader.integer(turned, 64),
            "v_head_dim": reader.integer("v-head-dim", 128),
            "rope": _without_none(rope),
        }
    grouped = reader.has("group-query-attention")
    if not grouped and reader.has("num-query-groups"):
        reader.lost("num-query-groups", "without --group-query-attention it does nothing", "no effect")
    if heads and hidden % heads and not reader.has("kv-channels"):
        reader.fault("num-attention-heads", f"must divide hidden_size={hidden} where --kv-channels is not given")
    biased = not reader.has("disable-bias-linear")
    window = reader.integers("window-size")
    return _without_none(
        {
            "kind": "attention",
            "heads": heads,
            "kv_heads": reader.integer("num-query-groups", 1) if grouped else heads,
            "head_dim": reader.integer("kv-channels", hidden // heads),
            "qkv_bias": biased or reader.has("add-qkv-bias"),
            "out_bias": biased or reader.has("add-dense-bias"),
            "qk_norm": reader.has("qk-layernorm"),
            "window": window[0] + 1 if window and window[0] >= 0 else None,
            "rope": _without_none(rope),
        }
    )


def _scaling(reader: _Reader) -> Plain | None:
    if factor := reader.real("rotary-seq-len-interpolation-factor"):
        return {"kind": "linear", "factor": factor}
    kind = "llama3" if reader.has("use-rope-scaling") else reader.text("rope-scaling-type")
    former = "rope-scaling-original-max-position-embeddings"
    original = reader.integer(former) or reader.integer("original-max-position-embeddings")
    factor = reader.real("rope-scaling-factor", 8.0 if kind == "llama3" else 1.0)
    if kind == "llama3":
        return {
            "kind": kind,
            "factor": factor,
            "low_freq_factor": reader.real("low-freq-factor", 1.0),
            "high_freq_factor": reader.real("high-freq-factor", 4.0),
            "original_max_position": original or 8192,
        }
    if kind == "yarn":
        scales = {
            "beta_fast": reader.real("beta-fast", 32.0),
            "beta_slow": reader.real("beta-slow", 1.0),
            "mscale": reader.real("rope-scaling-mscale"),
            "mscale_all_dim": reader.real("rope-scaling-mscale-all-dim"),
        }
        return {"kind": kind, "factor": factor, "original_max_position": original or 4096, **_without_none(scales)}
    if kind:
        reader.lost("rope-scaling-type", f"{kind} has no word in a job; positions are not scaled")
    return None


def _moe_layers(reader: _Reader, layers: int, noop: list[int]) -> Iterator[bool]:
    """For each layer that is no noop layer, whether it holds experts."""
    if outside := [position for position in noop if not 0 <= position < layers]:
        reader.fault("noop-layers", f"{outside} lie outside num_layers={layers}")
    if not reader.has("num-experts"):
        is_moe = [False] * layers
    elif re.fullmatch(r"-?\d+", text := reader.text("moe-layer-freq", "1")) and int(text):
        first = reader.integer("first-k-dense-replace", 0, minimum=-1) or 0
        is_moe = [layer >= first and layer % int(text) == 0 for layer in range(layers)]
    else:
        is_moe = _pattern(text)
        if len(is_moe) != layers:
            reader.fault("moe-layer-freq", f"must be an integer, or a list such as [0]*1+[1]*{layers - 1} of {layers}")
            is_moe = [True] * layers
    return (moe for layer, moe in enumerate(is_moe) if layer not in noop)


def _pattern(text: str) -> list[bool]:
    """The list that an expression such as ``([0]*3+[1]*58)`` stands for; empty if it is none."""

    def value(node: ast.expr) -> list[bool]:
        match node:
            case ast.List(elts=items):
                return [bool(ast.literal_eval(item)) for item in items]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(count))) if count < 10_000:
                return value(left) * count
            case _:
                raise ValueError(text)

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return []


def _feed_forward(reader: _Reader, hidden: int, *, moe: bool) -> Plain:
    if not reader.has("swiglu"):
        reader.lost(
            "ffn-hidden-size", "without --swiglu the activation is gelu; swiglu stands in its place", "approximated"
        )
    # Megatron keeps the parameters of a gated MLP near those of one four times as wide.
    width = reader.integer("ffn-hidden-size", int(4 * hidden * 2 / 3 / 64) * 64 if reader.has("swiglu") else 4 * hidden)
    if not moe:
        return {"kind": "mlp", "ffn_hidden": width, "bias": not reader.has("disable-bias-linear")}
    balancing = reader.text("moe-router-load-balancing-type", "aux_loss")
    if balancing in ("seq_aux_loss", "pai_megatron_aux_loss"):
        note = f"moe.aux_loss: {balancing} is taken as aux_loss"
        reader.lost("moe-router-load-balancing-type", note, "approximated")
    elif balancing not in ("aux_loss", "none", "softmax_topk"):
        reader.lost("moe-router-load-balancing-type", f"{balancing} has no word in a job; no loss stands in its place")
    if reader.text("moe-router-score-function", "softmax") != "softmax":
        reader.lost("moe-router-score-function", "only softmax has a word in a job; it stands in its place")
    own = reader.integer("moe-intermediate-size", width)
    return {
        "kind": "moe",
        "experts": reader.integer("num-experts"),
        "topk": reader.integer("moe-router-topk", 2),
        "ffn_hidden": reader.integer("moe-ffn-hidden-size", own),
        "normalize_topk": reader.has("norm-topk-prob") or not reader.has("moe-router-pre-softmax"),
        "aux_loss": reader.real("moe-aux-loss-coeff", 0.0) if "aux_loss" in balancing else 0.0,
        "z_loss": reader.real("moe-z-loss-coeff", 0.0),
    }


def _precision(reader: _Reader) -> Plain:
    if reader.has("bf16") and reader.has("fp16"):
        reader.fault("bf16", "contradicts --fp16", "keep one of the two")
    if reader.has("fp16"):
        reader.lost("fp16", "precision.params=bf16: as large, of another range", "approximated")
    half = reader.has("bf16") or reader.has("fp16")
    return {
        "params": "bf16" if half else "fp32",
        "grads": "bf16" if half and reader.has("grad-reduce-in-bf16") else "fp32",
    }


def _memory(reader: _Reader) -> Plain:
    memory: Plain = {"distributed_optimizer": reader.has("use-distributed-optimizer")}
    granularity = reader.text("recompute-granularity")
    if granularity and granularity not in ("full", "selective"):
        reader.fault("recompute-granularity", "unknown", "use full or selective")
    if granularity == "full":
        if not reader.has("recompute-method"):
            reader.fault("recompute-method", "is missing: full recompute needs it", "use uniform or block")
        method, layers = reader.text("recompute-method", "uniform"), reader.integer("recompute-num-layers", 1)
        memory["recompute"] = {"kind": "full", "method": method, "num_layers": layers}
    elif granularity == "selective" or reader.has("recompute-activations"):
        asked = reader.text("recompute-modules", "core_attn").split()
        known = [name for name in asked if name in ("core_attn", "mlp", "moe", "layernorm")]
        if known != asked:
            reader.lost("recompute-modules", f"of these a job has words for {known} only")
        memory["recompute"] = {"kind": "selective", "modules": known}
    return memory


def _comm(reader: _Reader) -> Plain:
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
    }


def _optimizer(reader: _Reader) -> Plain:
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
    steps = decay or reader.integer("train-iters") or 0
    return _without_none(
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


def _data(reader: _Reader) -> Plain:
    words = reader.given.get("data-path", ())
    weighted = len(words) > 1 and len(words) % 2 == 0 and all(re.fullmatch(r"[\d.]+", word) for word in words[::2])
    pairs = [(float(words[i]), words[i + 1]) for i in range(0, len(words), 2)] if weighted else []
    sources = [{"path": path, "weight": weight} for weight, path in pairs]
    if words and not weighted:
        sources = [{"path": " ".join(words)}]
    shares = [share for share in re.split(r"[,\s]+", reader.text("split")) if re.fullmatch(r"[\d.]+", share)]
    tokenizer = reader.text("tokenizer-name-or-path") or reader.text("tokenizer-model") or None
    split = [*map(float, shares), 0.0, 0.0][:3] if shares else None
    return _without_none({"sources": sources, "split": split, "tokenizer": tokenizer})


def _run(reader: _Reader) -> Plain:
    validated = reader.integer("eval-iters", 100, minimum=0)
    return _without_none(
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
