"""The operations of a layer, in the order of its forward."""

from ridgeline.core.model import Attention, Block, Mlp
from ridgeline.parallel.ops.attention import attention_ops
from ridgeline.parallel.ops.mlp import mlp_ops
from ridgeline.parallel.ops.moe import moe_ops
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import add, norm
from ridgeline.parallel.ops.words import Op


def block_ops(block: Block, sizes: Sizes) -> tuple[Op, ...]:
    """The operations of one layer, in the order of its forward."""
    assert isinstance(block.mixer, Attention)
    feed_forward = (
        mlp_ops(block.feed_forward, sizes)
        if isinstance(block.feed_forward, Mlp)
        else moe_ops(block.feed_forward, sizes)
    )
    return (
        norm("input_layernorm", "x", sizes),
        *attention_ops(block.mixer, sizes),
        add("attention_residual", sizes),
        norm("pre_mlp_layernorm", "x_after_attention", sizes),
        *feed_forward,
        add("mlp_residual", sizes),
    )
