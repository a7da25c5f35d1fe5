"""What a launch trains for, and how: the objective, dropout, adapters and the optimizer."""

from collections.abc import Iterator

import attrs

from ridgeline.core.codec import Plain
from ridgeline.core.fields import item_annotation, literal_choices
from ridgeline.core.job import Lora
from ridgeline.models.scripts.arguments import Entry, Reader, without_none
from ridgeline.models.scripts.flags import FLAGS

DROPOUTS = ("hidden-dropout", "attention-dropout")


def optimizer_of(reader: Reader) -> Plain:
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


def objective_of(reader: Reader) -> Plain:
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
    weights = {"mtp_loss": ("mtp-loss-scaling-factor", 0.1), "indexer_loss": ("indexer-loss-coeff", 1.0)}
    weighed = {"per_token": per_token, **{field: reader.real(*flag) for field, flag in weights.items()}}
    if tuned:
        return {"kind": "sft", "padded": padded, **weighed}
    return {"kind": "pretraining", "dropout": dropout, **weighed}


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


def dropout_by_default(reader: Reader) -> Iterator[Entry]:
    """Dropout, with which Megatron-LM trains unless told otherwise."""
    for name in DROPOUTS:
        if not reader.has(name):
            yield Entry(f"--{name}", "", FLAGS[name].fate, f"{FLAGS[name].note}: 0.1, since it is not given")


def _share(reader: Reader, name: str) -> float:
    """Of a flag's words the first, as its parser reads them."""
    word = (reader.given.get(name) or ("0.1",))[0]
    try:
        return float(word)
    except ValueError:
        reader.fault(name, "must be a number")
        return 0.0


def adapter_of(reader: Reader) -> Plain | None:
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
