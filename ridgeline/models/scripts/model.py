"""The model that a launch describes, as plain data."""

import ast
import math
import re
from itertools import groupby
from types import MappingProxyType

import attrs

from ridgeline.core.codec import Plain
from ridgeline.core.job import Job
from ridgeline.models.scripts.arguments import Reader, without_none
from ridgeline.models.zoo import model_names, model_preset

POSITIONS = MappingProxyType({"rope": "rope", "alibi": "alibi", "none": "none", "learned_absolute": "none"})
"""Megatron's and MindSpeed's names of what tells positions apart, to the mixer's."""


MIXED = "sparsemixer_topk"
BALANCINGS = ("aux_loss", "seq_aux_loss", "group_limited_greedy", "none", "softmax_topk", MIXED)
"""Ways of balancing experts that a job has words for."""


def model_of(reader: Reader, layout: Plain) -> Plain:
    """The fields of a ``ModelSpec``; the layout says which layers are noop layers."""
    layers = reader.integer("num-layers")
    hidden = reader.integer("hidden-size")
    heads = reader.integer("num-attention-heads")
    for name, value in (("num-layers", layers), ("hidden-size", hidden), ("num-attention-heads", heads)):
        if value is None and not reader.has(name):
            reader.fault(name, "is missing: without it there is no model")
    positions = reader.choice("position-embedding-type", POSITIONS, "learned_absolute")
    if reader.has("use-rotary-position-embeddings"):
        positions = "rope"
    vocab_size = reader.integer("padded-vocab-size") or reader.integer("vocab-size")
    model: Plain = {
        "vocab_size": vocab_size,
        "hidden": hidden,
        "max_position": reader.integer("max-position-embeddings") or reader.integer("seq-length"),
        "norm_eps": reader.real("norm-epsilon", 1e-5),
        "tied_embeddings": not reader.has("untie-embeddings-and-output-weights"),
        "mtp": reader.integer("mtp-num-layers", 0, minimum=0),
        "init_std": reader.real("init-method-std", 0.02),
        **_model_traits(reader, positions),
    }
    if layers and hidden:
        model |= _scales(reader, layers, hidden)
    if layers and hidden and heads:
        mixer = _mixer(reader, hidden, heads, POSITIONS[positions])
        moes = _moe_layers(reader, layers, layout["noop_layers"])
        kinds = zip(moes, _shared_choices(reader, len(moes)), strict=True)
        runs = [(*kind, len(list(run))) for kind, run in groupby(kinds)]
        parts = {moe: _feed_forward(reader, hidden, moe=moe) for moe in dict.fromkeys(moes)}
        norms = {"norms": "sandwich"} if reader.has("post-norm") else {}
        model["blocks"] = [
            {"block": {"mixer": _sharing(mixer) if shares else mixer, "feed_forward": parts[moe], **norms}, "count": n}
            for moe, shares, n in runs
        ]
    return without_none(model)


def _model_traits(reader: Reader, positions: str) -> Plain:
    """What few models have, where this one has it."""
    norm = "layer" if reader.text("normalization", "LayerNorm") != "RMSNorm" else "rms"
    if norm == "rms" and (reader.has("add-rmsnorm-offset") or reader.has("apply-layernorm-1p")):
        norm = "zero_centred_rms"
    traits: Plain = {
        "norm": norm,
        "learned_positions": positions == "learned_absolute" and not reader.has("no-position-embedding"),
        "embedding_norm": reader.has("embed-layernorm"),
        "head_bias": reader.has("add-output-layer-bias"),
        "logit_softcap": reader.real("output-logit-softcapping"),
    }
    return {name: value for name, value in traits.items() if value not in (None, False, "rms")}


def _scales(reader: Reader, layers: int, hidden: int) -> Plain:
    """What MiniCPM does to embedded tokens, to layers' outputs (noop layers count), and to logits."""
    depth, base = reader.real("scale-depth"), reader.real("dim-model-base")
    scales: Plain = {
        "embedding_scale": reader.real("scale-emb"),
        "residual_scale": None if depth is None else depth / math.sqrt(layers),
        "logit_scale": None if base is None else base / hidden,
    }
    return without_none(scales)


def _is_latent(reader: Reader) -> bool:
    """Whether attention is latent; before 2.2, MindSpeed-LLM's scripts say so by the width of its heads' parts only."""
    return reader.has("multi-latent-attention") or reader.has("qk-nope-head-dim")


def _mixer(reader: Reader, hidden: int, heads: int, positions: str) -> Plain:
    rope = {"base": reader.real("rotary-base", 10000.0), "scaling": _scaling(reader)}
    if reader.has("rotary-interleaved") or reader.has("use-glm-rope"):
        rope["interleaved"] = True
    if _is_latent(reader):
        nope = "qk-nope-head-dim" if reader.has("qk-nope-head-dim") else "qk-head-dim"
        turned = "qk-rope-head-dim" if reader.has("qk-rope-head-dim") else "qk-pos-emb-head-dim"
        return {
            "kind": "latent_attention",
            "heads": heads,
            **without_none({"q_lora_rank": reader.integer("q-lora-rank")}),
            "kv_lora_rank": reader.integer("kv-lora-rank", 32),
            "nope_head_dim": reader.integer(nope, 128),
            "rope_head_dim": reader.integer(turned, 64),
            "v_head_dim": reader.integer("v-head-dim", 128),
            "rope": without_none(rope),
            **without_none({"indexer": _indexer(reader)}),
        }
    share = (reader.real("rotary-percent", 1.0) or 1.0) * (reader.real("partial-rotary-factor", 1.0) or 1.0)
    rope["share"] = share if share != 1.0 else None
    grouped = reader.has("group-query-attention")
    if not grouped and reader.has("num-query-groups"):
        reader.lost("num-query-groups", "without --group-query-attention it does nothing", "no effect")
    if heads and hidden % heads and not reader.has("kv-channels"):
        reader.fault("num-attention-heads", f"must divide hidden_size={hidden} where --kv-channels is not given")
    biased = not reader.has("disable-bias-linear")
    window = reader.integers("window-size")
    return without_none(
        {
            "kind": "attention",
            "heads": heads,
            "kv_heads": reader.integer("num-query-groups", 1) if grouped else heads,
            "head_dim": reader.integer("kv-channels", hidden // heads),
            "qkv_bias": biased or reader.has("add-qkv-bias"),
            "out_bias": biased or reader.has("add-dense-bias"),
            "qk_norm": reader.has("qk-layernorm"),
            "window": window[0] + 1 if window and window[0] >= 0 else None,
            "positions": positions if positions != "rope" else None,
            "softcap": reader.real("attn-logit-softcapping"),
            "rope": without_none(rope),
        }
    )


def _indexer(reader: Reader) -> Plain | None:
    if not reader.has("enable-dsa-indexer"):
        return None
    sizes = {"heads": ("index-n-heads", 64), "head_dim": ("index-head-dim", 128), "topk": ("index-topk", 2048)}
    return {field: reader.integer(flag, default) for field, (flag, default) in sizes.items()}


def _shared_choices(reader: Reader, layers: int) -> list[bool]:
    """For each layer whether its attention sees what the indexer of one below chose."""
    if not reader.has("enable-dsa-indexer"):
        return [False] * layers
    freq, offset = reader.integer("index-topk-freq", 1) or 1, reader.integer("index-skip-topk-offset", 2, minimum=0)
    return [max(layer - (offset or 0) + 1, 0) % freq > 0 for layer in range(layers)]


def _sharing(mixer: Plain) -> Plain:
    return {**mixer, "indexer": {**mixer["indexer"], "shared": True}}


def _scaling(reader: Reader) -> Plain | None:
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
        return {"kind": kind, "factor": factor, "original_max_position": original or 4096, **without_none(scales)}
    if kind:
        reader.lost("rope-scaling-type", f"{kind} has no word in a job; positions are not scaled")
    return None


def _moe_layers(reader: Reader, layers: int, noop: list[int]) -> list[bool]:
    """For each layer that is no noop layer, whether it holds experts."""
    if outside := [position for position in noop if not 0 <= position < layers]:
        reader.fault("noop-layers", f"{outside} lie outside num_layers={layers}")
    if not reader.has("num-experts"):
        is_moe = [False] * layers
    elif re.fullmatch(r"-?\d+", text := reader.text("moe-layer-freq", "1")) and int(text):
        first = reader.integer("first-k-dense-replace", 0, minimum=-1) or 0
        if first >= layers:
            reader.fault("first-k-dense-replace", f"must be < num_layers={layers}: no layer would hold experts")
        is_moe = [layer >= first and layer % int(text) == 0 for layer in range(layers)]
    else:
        is_moe = _pattern(text)
        if len(is_moe) != layers:
            reader.fault("moe-layer-freq", f"must be an integer, or a list such as [0]*1+[1]*{layers - 1} of {layers}")
            is_moe = [True] * layers
    return [moe for layer, moe in enumerate(is_moe) if layer not in noop]


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


def _feed_forward(reader: Reader, hidden: int, *, moe: bool) -> Plain:
    activation = _activation(reader)
    # Megatron keeps the parameters of a gated MLP near those of one four times as wide.
    width = reader.integer("ffn-hidden-size", int(4 * hidden * 2 / 3 / 64) * 64 if reader.has("swiglu") else 4 * hidden)
    if not moe:
        bias = not reader.has("disable-bias-linear")
        return {"kind": "mlp", "ffn_hidden": width, "activation": activation, "bias": bias}
    balancing = reader.text("moe-router-load-balancing-type", "aux_loss")
    if balancing == "pai_megatron_aux_loss":
        note = f"moe.aux_loss: {balancing} is taken as aux_loss"
        reader.lost("moe-router-load-balancing-type", note, "approximated")
    elif balancing not in BALANCINGS:
        reader.lost("moe-router-load-balancing-type", f"{balancing} has no word in a job; no loss stands in its place")
    own = reader.integer("moe-intermediate-size", width)
    return {
        "kind": "moe",
        "experts": reader.integer("num-experts"),
        "topk": reader.integer("moe-router-topk", 2),
        "ffn_hidden": reader.integer("moe-ffn-hidden-size", own),
        "normalize_topk": balancing != MIXED
        and (reader.has("norm-topk-prob") or not reader.has("moe-router-pre-softmax")),
        "aux_loss": reader.real("moe-aux-loss-coeff", 0.0) if balancing not in ("none", "softmax_topk", MIXED) else 0.0,
        "z_loss": reader.real("moe-z-loss-coeff", 0.0),
        "activation": activation,
        **_expert_traits(reader),
    }


def _activation(reader: Reader) -> str:
    if reader.has("swiglu"):
        return "swiglu"
    if reader.has("squared-relu"):
        return "squared_relu"
    if reader.has("add-rmsnorm-offset"):  # MindSpeed-LLM's Gemma: a gate without a flag that says so
        return "geglu_tanh" if reader.has("gelu-tanh") else "geglu"
    return "gelu_tanh" if reader.has("gelu-tanh") else "gelu"


def _expert_traits(reader: Reader) -> Plain:
    """What few routed layers have, where this one has it."""
    width = reader.integer("moe-ffn-hidden-size", reader.integer("moe-intermediate-size", 0))
    shared = reader.integer(
        "moe-shared-expert-intermediate-size", (reader.integer("n-shared-experts", 0, minimum=0) or 0) * (width or 0)
    )
    balancing = reader.text("moe-router-load-balancing-type", "aux_loss")
    score = reader.choice("moe-router-score-function", ("softmax", "sigmoid"), "softmax")
    traits: Plain = {
        "topk_scale": reader.real("moe-router-topk-scaling-factor"),
        "aux_per_sequence": reader.has("seq-aux") or balancing == "seq_aux_loss",
        "device_aux_loss": reader.real("moe-device-level-aux-loss-coeff", 0.0),
        "comm_aux_loss": reader.real("moe-comm-aux-loss-coeff", 0.0),
        "score": "sparsemixer" if balancing == MIXED else score if score != "softmax" else None,
        "nearness": 0.01 if balancing == MIXED else None,  # MindSpeed-LLM's, which no flag changes
        "groups": reader.integer("moe-router-num-groups"),
        "group_topk": reader.integer("moe-router-group-topk"),
        "group_score": "max" if balancing == "group_limited_greedy" else None,
        "expert_bias": reader.has("moe-router-enable-expert-bias"),
        "expert_bias_rate": reader.real("moe-router-bias-update-rate"),
        "drop": reader.choice("moe-token-drop-policy", ("probs", "position"), "probs"),
        "shared_ffn": shared or None,
        "shared_gate": reader.has("shared-expert-gate"),
        "capacity_factor": reader.real("moe-expert-capacity-factor"),
        "pad_to_capacity": reader.has("moe-pad-expert-input-to-capacity"),
        "zero_experts": reader.integer("num-zero-experts", 0, minimum=0),
    }
    return {name: value for name, value in traits.items() if value}


def named(job: Job) -> Job:
    """The job with its model of the family and, where only one matches, the name of the published one it equals."""
    published = [model_preset(name) for name in model_names()]
    equal = [one for one in published if attrs.evolve(job.model, name=one.name, family=one.family) == one]
    if len({one.family for one in equal}) != 1:
        return job
    name = equal[0].name if len(equal) == 1 else job.model.name
    return attrs.evolve(job, model=attrs.evolve(equal[0], name=name))
