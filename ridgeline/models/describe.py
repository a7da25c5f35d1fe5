"""A model in words: what each part is, what sets the model apart, and a drawing of its blocks."""

from collections.abc import Iterator

from ridgeline.core.model import (
    Attention,
    Block,
    FeedForward,
    GatedDeltaNet,
    LatentAttention,
    Mamba2,
    Mixer,
    Mlp,
    ModelSpec,
    Moe,
    Rope,
)
from ridgeline.core.params import block_params


def traits_of(model: ModelSpec) -> tuple[str, ...]:
    """What sets a model apart from a plain decoder, a few words each, every one once."""
    return tuple(dict.fromkeys(_model_traits(model)))


def draw_model(model: ModelSpec) -> str:
    """A drawing of the model, every block that differs once.

    Example:
        >>> from ridgeline.models.zoo import model_preset
        >>> print(draw_model(model_preset("llama2-7b")))
        embedding 32,000 x 4,096
        layers 0-31, 202.4M parameters each
          |-> rms norm -> attention: 32 heads of 128 -> +
          |-> rms norm -> swiglu of 11,008 -> +
          v
        rms norm
        head 32,000 x 4,096
    """
    return "\n".join(_drawing(model))


def mixer_words(mixer: Mixer) -> str:
    """One mixer: its kind and sizes."""
    match mixer:
        case Attention():
            shared = f" over {mixer.kv_heads} key-value heads" if mixer.kv_heads != mixer.heads else ""
            return ", ".join((f"attention: {mixer.heads} heads of {mixer.head_dim}{shared}", *_attention_traits(mixer)))
        case LatentAttention():
            ranks = f"{f'queries {mixer.q_lora_rank:,}, ' if mixer.q_lora_rank else ''}keys and values"
            dims = f"{mixer.nope_head_dim}+{mixer.rope_head_dim} and {mixer.v_head_dim}"
            words = f"latent attention: {mixer.heads} heads of {dims}, latents of {ranks} {mixer.kv_lora_rank:,}"
            return ", ".join((words, *_latent_traits(mixer)))
        case GatedDeltaNet():
            heads = f"{mixer.key_heads} key heads of {mixer.key_head_dim}"
            values = f"{mixer.value_heads} value heads of {mixer.value_head_dim}"
            return f"gated delta net: {heads}, {values}, convolution over {mixer.conv_kernel}"
        case Mamba2():
            return f"mamba2: {mixer.heads} heads of {mixer.head_dim}, state {mixer.state}, {mixer.groups} groups"


def feed_forward_words(part: FeedForward) -> str:
    """One feed-forward: its kind and sizes."""
    if isinstance(part, Mlp):
        words = (f"{part.activation} of {part.ffn_hidden:,}", *(("biases",) if part.bias else ()))
    else:
        words = (f"{part.experts} {part.activation} experts of {part.ffn_hidden:,}, {part.topk} a token",)
        words = (*words, *_moe_traits(part))
    limits = (("limit", part.limit), ("shared limit", getattr(part, "shared_limit", None)))
    return ", ".join((*words, *(f"{name} {limit:g}" for name, limit in limits if limit is not None)))


def _drawing(model: ModelSpec) -> Iterator[str]:
    norm = f"{model.norm.replace('_', ' ')} norm"
    yield f"embedding {model.vocab_size:,} x {model.hidden:,}{_end_words(model)}"
    for block, layers in _layers_of_blocks(model).items():
        size = sum(param.elements for param in block_params(block, model)) / 1e6
        each = " each" if sum(map(len, layers)) > 1 else ""
        yield f"{_layer_words(layers)}, {size:,.1f}M parameters{each}"
        yield from _block_lines(block, norm)
    yield norm
    if model.mtp:
        layer = "a layer like the last" if model.mtp_block is None else "and"
        yield f"{model.mtp} x multi-token prediction: norms, projection of {2 * model.hidden:,}, {layer}"
        if model.mtp_block is not None:
            yield from _block_lines(model.mtp_block, norm)
    yield "head: the embedding" if model.tied_embeddings else f"head {model.vocab_size:,} x {model.hidden:,}"


def _layers_of_blocks(model: ModelSpec) -> dict[Block, list[range]]:
    """Where each block stands, in the order of its first layer."""
    found: dict[Block, list[range]] = {}
    first = 0
    for run in model.blocks:
        found.setdefault(run.block, []).append(range(first, first + run.count))
        first += run.count
    return found


def _layer_words(layers: list[range]) -> str:
    """At most four runs of layers, and how many there are where there are more."""
    runs = [f"{run.start}-{run[-1]}" if len(run) > 1 else str(run.start) for run in layers[:4]]
    count = sum(map(len, layers))
    more = f" and so on, {count} in all" if len(layers) > 4 else ""
    return f"layer{'s' if count > 1 else ''} {', '.join(runs)}{more}"


def _block_lines(block: Block, norm: str) -> Iterator[str]:
    after = f" -> {norm}" if block.norms == "sandwich" else ""
    if block.mixer is not None:
        yield f"  |-> {norm} -> {mixer_words(block.mixer)}{after} -> +"
    if block.feed_forward is not None:
        yield f"  |-> {norm} -> {feed_forward_words(block.feed_forward)}{after} -> +"
    if block.shortcut is not None:
        yield f"  |      beside it: {feed_forward_words(block.shortcut)} -> + after the next layer"
    yield "  v"


def _end_words(model: ModelSpec) -> str:
    scale = f", times {model.embedding_scale:g}" if model.embedding_scale != 1.0 else ""
    return (
        scale + (", learned positions" if model.learned_positions else "") + (", norm" if model.embedding_norm else "")
    )


def _model_traits(model: ModelSpec) -> Iterator[str]:
    for run in model.blocks:
        mixer, part = run.block.mixer, run.block.feed_forward
        match mixer:
            case Attention():
                if mixer.kv_heads != mixer.heads:
                    yield "MQA" if mixer.kv_heads == 1 else "GQA"
                yield from _attention_traits(mixer)
            case LatentAttention():
                yield "MLA"
                yield from _latent_traits(mixer)
            case GatedDeltaNet() | Mamba2():
                yield mixer.kind.replace("_", " ")
            case None:
                pass
        if isinstance(part, Moe):
            yield f"{part.experts} experts, {part.topk} a token"
            yield from _moe_traits(part)
        elif part is not None and part.activation != "swiglu":
            yield part.activation
        if run.block.norms == "sandwich":
            yield "norms before and after"
        if run.block.shortcut is not None:
            yield "experts beside layers"
    if model.norm != "rms":
        yield f"{model.norm.replace('_', ' ')} norm"
    if model.learned_positions:
        yield "learned positions"
    if model.residual_scale != 1.0:
        yield "scaled layers"
    if model.normalized_head:
        yield "head rows of length 1"
    if model.tied_embeddings:
        yield "tied"
    if model.mtp:
        yield f"{model.mtp} multi-token prediction"


def _attention_traits(mixer: Attention) -> Iterator[str]:
    if mixer.qkv_bias:
        yield "biases" if mixer.out_bias else "qkv bias"
    if mixer.qk_norm:
        yield "qk norm" if mixer.qk_norm_over == "head" else "qk norm over all heads"
    if mixer.window is not None:
        yield f"window {mixer.window:,}"
    if mixer.softcap is not None:
        yield f"soft-cap {mixer.softcap:g}"
    if mixer.sinks:
        yield "sinks"
    if mixer.gate != "none":
        yield f"gate of each {mixer.gate}"
    if mixer.shares_kv:
        yield "shares keys and values"
    yield from _rope_traits(mixer.rope) if mixer.positions == "rope" else (mixer.positions.replace("none", "no rope"),)


def _latent_traits(mixer: LatentAttention) -> Iterator[str]:
    if mixer.indexer is not None and mixer.indexer.shared:
        yield f"{mixer.indexer.topk:,} positions of a layer below"
    elif mixer.indexer is not None:
        yield f"indexer of {mixer.indexer.heads} heads, {mixer.indexer.topk:,} positions"
    yield from _rope_traits(mixer.rope)


def _rope_traits(rope: Rope) -> Iterator[str]:
    if rope.share != 1.0:
        yield f"rope on {rope.share:.0%}"
    if rope.scaling is not None:
        yield f"{rope.scaling.kind} rope"


def _moe_traits(part: Moe) -> Iterator[str]:
    if part.shared_ffn is not None:
        yield f"shared of {part.shared_ffn:,}{' behind a gate' if part.shared_gate else ''}"
    if part.score != "softmax":
        yield f"{part.score} scores"
    if part.groups > 1:
        yield f"{part.group_topk} of {part.groups} groups"
    if part.expert_bias:
        yield "expert bias"
    if part.zero_experts:
        yield f"{part.zero_experts} zero experts"
