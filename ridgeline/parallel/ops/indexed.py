"""Latent attention to the positions an indexer chooses: over the latents themselves, which all heads share.

Queries are brought to the latents' size and the context back from it, head by head; keys and values are never drawn up.
Under sp each tp rank chooses for its own tokens and is told the choice for all; of what trains the indexer it gets the
sum over all heads for its own tokens. The last tp rank's tokens see the most positions, and all wait for it.

Source:
    The operations as ridgeline/models/runtime runs them (``sparse_attention.py``, ``indexer.py``, ``indexer_loss.py``);
    what fused ones keep: torch_npu 2.13, derivatives.yaml.
"""

from collections.abc import Iterator

from ridgeline.core.flops import attended_positions
from ridgeline.core.model import Indexer, LatentAttention
from ridgeline.parallel.ops.attention import out_op
from ridgeline.parallel.ops.context import Spread, context_comms, context_work
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.words import Comm, Op, Saved

LOSS_ROWS = 64
"""Queries whose chosen keys the loss holds at once."""


def indexer_ops(indexer: Indexer, sizes: Sizes, *, q_lora_rank: int) -> Iterator[Op]:
    """The indexer's projections of this rank's tokens, their scores of all positions, and the choice of the best."""
    own, width = sizes.own_tokens, sizes.width
    q, keys = own * indexer.heads * indexer.head_dim * width, sizes.tokens * indexer.head_dim * width
    kept = (
        Saved("before_index_norm", own * indexer.head_dim * width),
        Saved("index_statistics", own * 8),
        Saved("index_q", q),
        Saved("index_k", keys),
        Saved("index_weights", own * indexer.heads * width),
    )
    yield Op(
        "indexer_proj",
        gemms=(
            (own, q_lora_rank, indexer.heads * indexer.head_dim),
            (own, sizes.hidden, indexer.head_dim),
            (own, sizes.hidden, indexer.heads),
        ),
        moved_bytes=2 * q,
        saved=kept if sizes.indexer_learns else (),
        comms=tuple(_over_tp(sizes, keys, back=sizes.indexer_learns)),
        forward_work_bytes=q,
        backward_work_bytes=q,
        backward_share=0.5 if sizes.indexer_learns else 0.0,  # its input is given
    )
    chosen = min(indexer.topk, sizes.seq_len)
    split = _splits(sizes)
    seen = sizes.seq_len * (1 - 1 / (2 * sizes.tp)) if split else sizes.seq_len / 2
    scores = int(own * seen * 4)
    learnt = (Saved("own_chosen", own * chosen * 4),) if split and sizes.indexer_learns else ()
    yield Op(
        "indexer",
        attention_flops=2 * seen * own * indexer.heads * indexer.head_dim,
        moved_bytes=2 * scores,
        saved=(Saved("chosen", sizes.tokens * chosen * 4), *learnt),
        comms=(Comm("F", "all_gather", "tp", sizes.tokens * chosen * 4),) if split else (),
        forward_work_bytes=scores,
        # Three products over the chosen positions, where attention's has five for two over all.
        backward_share=min(1.0, 1.2 * chosen / (2 * seen)) if sizes.indexer_learns else 0.0,
    )


def sparse_ops(mixer: LatentAttention, indexer: Indexer, sizes: Sizes) -> Iterator[Op]:
    """From queries and latents to the projection back."""
    tokens, width, heads = sizes.tokens, sizes.width, mixer.heads // sizes.tp
    latent_size, rope = mixer.kv_lora_rank, mixer.rope_head_dim
    q, context = tokens * heads * mixer.qk_head_dim * width, tokens * heads * latent_size * width
    turned, latents, key_rope = tokens * heads * rope * width, tokens * latent_size * width, tokens * rope * width
    v = tokens * heads * mixer.v_head_dim * width
    yield Op(
        "rope",
        moved_bytes=2 * (turned + key_rope),
        saved=(Saved("q_rope", turned, "mla_up_proj"), Saved("k_rope", key_rope)),
        comms=tuple(_over_tp(sizes, latents + key_rope)),
        forward_work_bytes=turned + latents + key_rope,
        backward_work_bytes=turned + latents + key_rope,
    )
    yield Op(
        "absorb_keys",
        part="mla_up_proj",
        gemms=((tokens, mixer.nope_head_dim, heads * latent_size),),
        moved_bytes=q + 2 * context,  # what the product reads, and its copy in the kernel's order
        saved=(Saved("q", q, "mla_up_proj", for_weight=True),),
        forward_work_bytes=context,
        backward_work_bytes=context + q,
    )
    positions = attended_positions(mixer, sizes.seq_len, "causal")
    spread = Spread(
        q=context + turned, k=latents, v=key_rope, kv_heads=max(mixer.heads, sizes.tp * sizes.ulysses), context=context
    )
    exchange = context_work(spread, sizes)
    # A checkpoint keeps the latents as they were gathered, of which the kernel makes a copy without the turned part.
    gathered = latents + key_rope if sizes.recomputes_attention else latents
    yield Op(
        "attention",
        part="core_attn",
        attention_flops=2 * positions * tokens * heads * (2 * latent_size + rope),
        attention_scores=positions * tokens * heads,
        saved=(
            Saved("absorbed_q", context, "mla_up_proj"),
            Saved("latents", gathered),
            Saved("statistics", tokens * heads * 8, "core_attn"),
            Saved("context", context, for_weight=True),
        ),
        comms=tuple(context_comms(spread, sizes)),
        forward_work_bytes=exchange.forward,
        backward_work_bytes=2 * context + turned + 2 * latents + exchange.backward,
    )
    if sizes.indexer_learns and not indexer.shared:
        yield _loss_op(mixer, indexer, sizes)
    yield Op(
        "absorb_values",
        gemms=((tokens, latent_size, heads * mixer.v_head_dim),),
        moved_bytes=context + 2 * v,
        saved=(Saved("value", v, for_weight=True),),
        forward_work_bytes=v,
        backward_work_bytes=context + v,
    )
    yield out_op(tokens * heads * mixer.v_head_dim, heads * mixer.v_head_dim, sizes)


def _loss_op(mixer: LatentAttention, indexer: Indexer, sizes: Sizes) -> Op:
    """Where all heads look among the chosen positions, and its distance from the indexer's scores.

    The gradient is made with it, and only the indexer has one.
    """
    tokens, chosen, heads = sizes.tokens, min(indexer.topk, sizes.seq_len), mixer.heads // sizes.tp
    size, target = mixer.kv_lora_rank + mixer.rope_head_dim, tokens * chosen * 4
    keys, weights = chosen * size * sizes.width, heads * chosen * (sizes.width + 2 * 4)  # of a query
    return Op(
        "indexer_loss",
        attention_flops=2 * tokens * chosen * heads * size,
        moved_bytes=tokens * (3 * keys + 2 * weights),
        saved=(Saved("index_gradient", sizes.own_tokens * chosen * sizes.width),),
        comms=(Comm("F", "reduce_scatter", "tp", target, in_graph=True),) if _splits(sizes) else (),
        forward_work_bytes=2 * target + LOSS_ROWS * sizes.samples * (keys + weights),
        backward_share=0.0,
    )


def _splits(sizes: Sizes) -> bool:
    """Whether tp ranks choose each for its own tokens."""
    return sizes.tp > 1 and sizes.sp


def _over_tp(sizes: Sizes, size_bytes: int, *, back: bool = True) -> Iterator[Comm]:
    """What every tp rank needs of all tokens, and each has of its own."""
    if _splits(sizes):
        yield Comm("F", "all_gather", "tp", size_bytes)
        if back:
            yield Comm("B", "reduce_scatter", "tp", size_bytes)
