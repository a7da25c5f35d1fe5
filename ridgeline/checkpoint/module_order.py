"""In which order the modules of a chunk register their parameters: so an optimizer numbers them and lays them out.

Source:
    megatron-core 0.16.1: transformer/transformer_layer.py, attention.py (an output projection stands before what feeds
    it), multi_latent_attention.py, moe/moe_layer.py, moe/shared_experts.py; our own modules in ``models/runtime``.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from ridgeline.parallel.shards import LocalParam

ATTENTION = ("core_attention.", "linear_proj.", "linear_qkv.", "q_layernorm.", "k_layernorm.")
LATENT = (
    "linear_q_proj.", "linear_q_down_proj.", "q_layernorm.", "linear_q_up_proj.",
    "linear_kv_down_proj.", "kv_layernorm.", "linear_kv_up_proj.", "core_attention.", "linear_proj.",
)  # fmt: skip
MEGATRON_LATENT = (
    "core_attention.", "linear_proj.", "linear_q_proj.", "linear_q_down_proj.", "linear_q_up_proj.",
    "linear_kv_down_proj.", "linear_kv_up_proj.", "q_layernorm.", "kv_layernorm.",
)  # fmt: skip
"""Megatron-core's own latent attention, in the place of ours."""
DELTA_NET = ("dt_bias", "A_log", "in_proj.", "conv1d.", "out_norm.", "out_proj.")

BEFORE, BETWEEN = ("input_layernorm.",), ("pre_mlp_layernorm.",)
FEED_FORWARD = ("mlp.router.", "mlp.experts.", "mlp.shared_experts.gate_weight", "mlp.shared_experts.", "mlp.")
AFTER = ("shortcut.", "post_self_attn_layernorm.", "post_mlp_layernorm.")


def in_module_order(
    params: Iterable[LocalParam], *, latent: Sequence[str] = LATENT, grouped: bool = False
) -> list[LocalParam]:
    """A chunk's parameters, given in model order, as its modules register them.

    Args:
        params: Of one chunk.
        latent: The order within latent attention, which is ``MEGATRON_LATENT`` in files of Megatron-core's own.
        grouped: Experts stand tensor by tensor, and not each with all its own.
    """
    ordered: list[LocalParam] = []
    for _, run in groupby(params, key=_layer_of):
        layer = list(run)
        parts = _parts(layer, latent)
        ordered += sorted(layer, key=lambda param: (_place(param.name, parts), 0 if grouped else param.expert or 0))
    return ordered


def _layer_of(param: LocalParam) -> str:
    layer = re.match(r"decoder\.layers\.\d+|mtp\.layers\.\d+\.transformer_layer", param.name)
    return layer[0] if layer else param.name


def _parts(layer: Sequence[LocalParam], latent: Sequence[str]) -> tuple[str, ...]:
    """What the names of a layer's parameters hold, in order."""
    names = [param.name for param in layer]
    if any("linear_kv_down_proj." in name for name in names):
        mixer = latent
    elif any("self_attention.A_log" in name for name in names):
        mixer = DELTA_NET
    else:
        mixer = ATTENTION
    return (*BEFORE, *mixer, "self_attention.", *BETWEEN, *FEED_FORWARD, *AFTER)


def _place(name: str, parts: Sequence[str]) -> int:
    return next((place for place, part in enumerate(parts) if part in name), len(parts))
