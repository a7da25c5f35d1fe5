"""The operations of a layer, in the order of its forward."""

from collections.abc import Iterator

from ridgeline.core.model import Attention, Block, FeedForward, GatedDeltaNet, LatentAttention, Mamba2, Mixer, Mlp
from ridgeline.parallel.ops.attention import attention_ops
from ridgeline.parallel.ops.latent import latent_ops
from ridgeline.parallel.ops.mlp import mlp_ops
from ridgeline.parallel.ops.moe import moe_ops
from ridgeline.parallel.ops.scans import delta_net_ops, mamba_ops
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import add, norm
from ridgeline.parallel.ops.words import Op, Saved


def block_ops(block: Block, sizes: Sizes) -> tuple[Op, ...]:
    """The operations of one layer, in the order of its forward."""
    return tuple(_block_ops(block, sizes))


def _block_ops(block: Block, sizes: Sizes) -> Iterator[Op]:
    sandwich = block.norms == "sandwich"
    if block.mixer is not None:
        yield norm("input_layernorm", "x", sizes)
        yield from _mixer_ops(block.mixer, sizes)
        if sandwich:
            yield norm("post_attention_layernorm", "attention_output", sizes)
        yield add("attention_residual", sizes)
    if block.feed_forward is not None:
        yield norm("pre_mlp_layernorm", "x_after_attention", sizes)
        if block.shortcut is not None:
            yield from (_beside(op) for op in moe_ops(block.shortcut, sizes))
        yield from _feed_forward_ops(block.feed_forward, sizes)
        if sandwich:
            yield norm("post_mlp_layernorm", "mlp_output", sizes)
        yield add("mlp_residual", sizes)
    if block.shortcut is not None:
        yield add("shortcut_residual", sizes)


def _mixer_ops(mixer: Mixer, sizes: Sizes) -> Iterator[Op]:
    match mixer:
        case Attention():
            return attention_ops(mixer, sizes)
        case LatentAttention():
            return latent_ops(mixer, sizes)
        case GatedDeltaNet():
            return delta_net_ops(mixer, sizes)
        case Mamba2():
            return mamba_ops(mixer, sizes)


def _feed_forward_ops(feed_forward: FeedForward, sizes: Sizes) -> tuple[Op, ...]:
    return mlp_ops(feed_forward, sizes) if isinstance(feed_forward, Mlp) else moe_ops(feed_forward, sizes)


def _beside(op: Op) -> Op:
    """An operation of the experts beside a layer, whose input the layer's feed-forward keeps already."""
    saved = tuple(one for one in op.saved if one.name != "mlp_input")
    return op._replace(name=f"shortcut_{op.name}", saved=tuple(Saved(f"shortcut_{s.name}", *s[1:]) for s in saved))
