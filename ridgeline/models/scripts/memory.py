"""What a launch keeps in memory: widths of numbers, states, swapping and recomputing."""

from types import MappingProxyType

from ridgeline.core.codec import Plain
from ridgeline.models.scripts.arguments import Reader, without_none

PART_NAMES = MappingProxyType(
    {name: name for name in ("core_attn", "mlp", "moe", "layernorm")} | {"moe_act": "activation"}
)
"""Megatron's names of parts to ours."""


def precision_of(reader: Reader) -> Plain:
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


def memory_of(reader: Reader) -> Plain:
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
    parts = {"recompute-activation-function": "activation", "recompute-norm": "layernorm", "moe-layer-recompute": "moe"}
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
