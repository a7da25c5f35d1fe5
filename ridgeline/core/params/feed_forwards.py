"""The parameters of an MLP, and of routed and shared experts.

Source:
    megatron-core 0.16.1, transformer/mlp.py, transformer/moe/router.py, transformer/moe/shared_experts.py.
"""

from collections.abc import Iterator

from ridgeline.core.model import FeedForward, Mlp, Moe, is_gated
from ridgeline.core.params.table import Param


def feed_forward_params(feed_forward: FeedForward, hidden: int, *, prefix: str = "mlp.") -> Iterator[Param]:
    """The parameters of a feed-forward, named within its layer."""
    if isinstance(feed_forward, Mlp):
        yield from _products(feed_forward, feed_forward.ffn_hidden, hidden, prefix)
        return
    choices = feed_forward.experts + feed_forward.zero_experts
    yield Param(prefix + "router.weight", (choices, hidden), "router")
    if feed_forward.router_bias:
        yield Param(prefix + "router.bias", (choices,), "router_bias")
    if feed_forward.expert_bias:
        yield Param(prefix + "router.expert_bias", (choices,), "expert_bias")
    expert = prefix + "experts.local_experts.{expert}."
    yield from _products(feed_forward, feed_forward.ffn_hidden, hidden, expert, experts=feed_forward.experts)
    if feed_forward.shared_ffn is not None:
        yield from _products(feed_forward, feed_forward.shared_ffn, hidden, prefix + "shared_experts.")
        if feed_forward.shared_gate:
            yield Param(prefix + "shared_experts.gate_weight", (1, hidden), "replicated")


def _products(layer: FeedForward, ffn: int, hidden: int, prefix: str, *, experts: int = 0) -> Iterator[Param]:
    gated = is_gated(layer.activation)
    rows = 2 * ffn if gated else ffn
    shared = isinstance(layer, Moe) and not experts
    yield Param(prefix + "linear_fc1.weight", (rows, hidden), "gate_up" if gated else "up", experts)
    if layer.bias and not shared:
        yield Param(prefix + "linear_fc1.bias", (rows,), "gate_up_bias" if gated else "up_bias", experts)
    yield Param(prefix + "linear_fc2.weight", (hidden, ffn), "down", experts)
    if layer.bias and not shared:
        yield Param(prefix + "linear_fc2.bias", (hidden,), "down_bias", experts)
