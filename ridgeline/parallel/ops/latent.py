"""Multi-head latent attention: latents down, norms, heads up, the kernel, the projection back.

Down-projections are whole on every tp rank and work on its own tokens; the latents are what sequence parallelism
gathers. The rotary part of the key has one head, copied into every head's key.

Source:
    megatron-core 0.16.1, transformer/multi_latent_attention.py (``qkv_up_proj_and_rope_apply``): queries and keys are
    concatenated from their parts, so that both are tensors of their own; the value is a copy out of the up-projection.
"""

from collections.abc import Iterator

from ridgeline.core.flops import attended_positions
from ridgeline.core.model import LatentAttention
from ridgeline.parallel.ops.attention import kept_weights, out_op, weights_bytes
from ridgeline.parallel.ops.context import Spread, context_comms, context_work, merged_bytes
from ridgeline.parallel.ops.indexed import indexer_ops, sparse_ops
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms
from ridgeline.parallel.ops.words import Comm, Op, Saved


def latent_ops(mixer: LatentAttention, sizes: Sizes) -> Iterator[Op]:
    """From the layer's normed input to its output before the residual."""
    own, tokens, width, hidden = sizes.own_tokens, sizes.tokens, sizes.width, sizes.hidden
    heads = mixer.heads // sizes.tp
    q, v = tokens * heads * mixer.qk_head_dim * width, tokens * heads * mixer.v_head_dim * width
    kv_columns = heads * (mixer.nope_head_dim + mixer.v_head_dim)
    kv_latent = mixer.kv_lora_rank + mixer.rope_head_dim
    stream = Saved("qkv_input", own * hidden * width, "layernorm", for_weight=True)
    if mixer.q_lora_rank is None:
        yield _up("linear_q_proj", hidden, heads * mixer.qk_head_dim, stream, sizes)
    else:
        yield Op("linear_q_down", gemms=((own, hidden, mixer.q_lora_rank),), saved=(stream,))
        yield _latent_norm("q_layernorm", mixer.q_lora_rank, mixer.q_lora_rank, sizes)
        latent = Saved("q_latent", own * mixer.q_lora_rank * width, for_weight=True)
        yield _up("linear_q_up", mixer.q_lora_rank, heads * mixer.qk_head_dim, latent, sizes)
    if mixer.indexer is not None and not mixer.indexer.shared and mixer.q_lora_rank is not None:
        yield from indexer_ops(mixer.indexer, sizes, q_lora_rank=mixer.q_lora_rank)
    yield Op("linear_kv_down", gemms=((own, hidden, kv_latent),))
    # The norm's input is a view of the projection, which keeps the rotary part alive with it.
    yield _latent_norm("kv_layernorm", mixer.kv_lora_rank, kv_latent, sizes)
    if mixer.indexer is not None:
        yield from sparse_ops(mixer, mixer.indexer, sizes)
        return
    latent = Saved("kv_latent", own * mixer.kv_lora_rank * width, for_weight=True)
    yield _up("linear_kv_up", mixer.kv_lora_rank, kv_columns, latent, sizes)
    yield Op(
        "rope",
        moved_bytes=2 * (2 * q + v),
        comms=tuple(_rotary_comms(mixer, sizes)),
        forward_work_bytes=2 * q + v,
        backward_work_bytes=2 * q + v,
    )
    positions = attended_positions(mixer, sizes.seq_len, "full" if "attention" in sizes.plain else "causal")
    spread = Spread(q=q, k=q, v=v, kv_heads=mixer.heads, context=v)
    exchange = context_work(spread, sizes)
    yield Op(
        "attention",
        part="core_attn",
        attention_flops=2 * positions * tokens * heads * (mixer.qk_head_dim + mixer.v_head_dim),
        attention_scores=0.0 if "attention" in sizes.plain else positions * tokens * heads,
        moved_bytes=weights_bytes(tokens * heads, sizes) + merged_bytes(v, sizes),
        saved=(
            Saved("q", q, "mla_up_proj"),
            Saved("k", q, "mla_up_proj"),
            Saved("v", q if sizes.pads_values else v, "mla_up_proj"),
            *kept_weights(tokens * heads, sizes),
            *((Saved("padded_context", q),) if sizes.pads_values else ()),
            Saved("context", v, for_weight=True),
        ),
        comms=tuple(context_comms(spread, sizes)),
        forward_work_bytes=exchange.forward,
        backward_work_bytes=2 * q + 2 * v + exchange.backward,
    )
    yield out_op(tokens * heads * mixer.v_head_dim, heads * mixer.v_head_dim, sizes)


def _up(name: str, features: int, columns: int, saved: Saved, sizes: Sizes) -> Op:
    """A product that gives every head its part."""
    size = sizes.tokens * columns * sizes.width
    return Op(
        name,
        part="mla_up_proj",
        gemms=((sizes.tokens, features, columns),),
        saved=(saved,),
        comms=tuple(column_comms(sizes, features=features)),
        forward_work_bytes=size,
        backward_work_bytes=size + columns * features * sizes.width,
    )


def _latent_norm(name: str, rank: int, kept: int, sizes: Sizes) -> Op:
    size = sizes.own_tokens * sizes.width
    saved = (Saved(f"before_{name}", size * kept), Saved("rstd", sizes.own_tokens * 4))
    return Op(name, moved_bytes=2 * size * rank, saved=saved)


def _rotary_comms(mixer: LatentAttention, sizes: Sizes) -> Iterator[Comm]:
    """The key's rotary part comes from each rank's own tokens, and every rank needs all of it."""
    if sizes.tp > 1 and sizes.sp:
        whole = sizes.tokens * mixer.rope_head_dim * sizes.width
        yield Comm("F", "all_gather", "tp", whole)
        yield Comm("B", "reduce_scatter", "tp", whole)
