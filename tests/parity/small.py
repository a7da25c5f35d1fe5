"""Models of a few thousand parameters and the jobs that train them; no two sizes of a model are equal."""

from typing import Any

import attrs

from ridgeline.core.job import Batch, Comm, ConstantLr, Job, Memory, Optimizer, Precision
from ridgeline.core.layout import Layout
from ridgeline.core.model import (
    Attention,
    Block,
    FeedForward,
    GatedDeltaNet,
    Indexer,
    LatentAttention,
    Mamba2,
    Mixer,
    Mlp,
    ModelSpec,
    Moe,
    Repeat,
    Rope,
)
from ridgeline.parallel.clusters import cluster_preset

VOCAB, HIDDEN, SEQ_LEN = 97, 36, 24
MLP = Mlp(ffn_hidden=52)
MOE = Moe(experts=6, topk=2, ffn_hidden=28, aux_loss=0.02, z_loss=0.001)


def model_of(*feed_forwards: FeedForward, tied: bool = False, **attention: Any) -> ModelSpec:
    """A model with a layer for each feed-forward."""
    mixer = Attention(**{"heads": 4, "kv_heads": 2, "head_dim": 10, "qkv_bias": True, "qk_norm": True, **attention})
    blocks = tuple(Repeat(block=Block(mixer=mixer, feed_forward=part), count=1) for part in feed_forwards)
    return ModelSpec(
        vocab_size=VOCAB, hidden=HIDDEN, max_position=64, blocks=blocks, tied_embeddings=tied, init_std=0.1
    )


LATENT = LatentAttention(
    heads=4, q_lora_rank=14, kv_lora_rank=18, nope_head_dim=10, rope_head_dim=6, v_head_dim=8, rope=Rope(base=500.0)
)
INDEXED = attrs.evolve(LATENT, indexer=Indexer(heads=11, head_dim=9, topk=5))
SHARED_INDEXED = attrs.evolve(INDEXED, indexer=attrs.evolve(INDEXED.indexer, shared=True))
ROUTED = attrs.evolve(
    MOE, experts=8, groups=4, group_topk=2, topk=4, score="sigmoid", expert_bias=True, topk_scale=1.5, shared_ffn=44
)
ZERO = attrs.evolve(MOE, zero_experts=3, topk=4, expert_bias=True, normalize_topk=False)
SHARED = attrs.evolve(MOE, shared_ffn=44, shared_gate=True)
BIASED = attrs.evolve(MOE, bias=True, router_bias=True, activation="shifted_swiglu", limit=0.9)
OWN = Attention(heads=4, kv_heads=2, head_dim=10, qk_norm=True, qk_norm_after_rope=True)
SHARING = attrs.evolve(OWN, shares_kv=True)
DELTA = GatedDeltaNet(key_heads=2, value_heads=4, key_head_dim=6, value_head_dim=10)
BOUNDED = attrs.evolve(MOE, shared_ffn=44, activation="bounded_swiglu", limit=0.2, shared_limit=0.3)
WIDE = Attention(heads=8, kv_heads=2, head_dim=10, qk_norm=True, gate="head", window=7)
NARROW = Attention(heads=4, kv_heads=1, head_dim=12, qkv_bias=True, gate="head", rope=Rope(base=500.0, share=0.5))
GATED = Attention(heads=4, kv_heads=2, head_dim=12, qk_norm=True, gate="element", rope=Rope(share=0.5))


def layers_of(*layers: tuple[Mixer, FeedForward], beside: Moe | None = None, **traits: Any) -> ModelSpec:
    """A model of these layers, with experts beside the first of each two."""
    blocks = tuple(
        Repeat(block=Block(mixer=mixer, feed_forward=part, shortcut=None if index % 2 else beside), count=1)
        for index, (mixer, part) in enumerate(layers)
    )
    return ModelSpec(vocab_size=VOCAB, hidden=HIDDEN, max_position=64, blocks=blocks, init_std=0.1, **traits)


def one_part_layers(*parts: Mixer | FeedForward, **traits: Any) -> ModelSpec:
    """A model with a layer for each mixer and each feed-forward."""
    blocks = [Block(feed_forward=part) if isinstance(part, (Mlp, Moe)) else Block(mixer=part) for part in parts]
    runs = tuple(Repeat(block=block, count=1) for block in blocks)
    return ModelSpec(vocab_size=VOCAB, hidden=HIDDEN, max_position=64, blocks=runs, init_std=0.1, **traits)


MAMBA = Mamba2(heads=4, head_dim=10, state=14, groups=2, conv_kernel=3, bias=True)

MODELS = {
    "latent": layers_of((LATENT, MLP), *[(LATENT, ROUTED)] * 3),
    "indexed": layers_of((INDEXED, MLP), *[(INDEXED, ROUTED)] * 3),
    "shared indexers": layers_of(*[(INDEXED, MLP), (SHARED_INDEXED, ROUTED)] * 2),
    "delta": layers_of(*[(DELTA, MOE), (GATED, MOE)] * 2, norm="zero_centred_rms"),
    "shortcut": layers_of(*[(LATENT, MLP)] * 4, beside=ZERO),
    "shared kv": layers_of(*[(OWN, MLP), (SHARING, MOE)] * 2),
    "ahead": layers_of((LATENT, MLP), *[(LATENT, ROUTED)] * 3, mtp=2),
    "tied ahead": layers_of(*[(GATED, MLP)] * 4, mtp=1, tied_embeddings=True, embedding_scale=3.0),
    "head gates": layers_of(*[(WIDE, MLP), (NARROW, MLP)] * 2),
    "bounded": layers_of(*[(WIDE, BOUNDED), (WIDE, attrs.evolve(BOUNDED, shared_limit=None))] * 2),
    "mamba": one_part_layers(MAMBA, MLP, MAMBA, GATED, norm="zero_centred_rms"),
    "dense": model_of(*[MLP] * 4),
    "tied": model_of(*[MLP] * 4, tied=True),
    "moe": model_of(*[MOE] * 4),
    "shared": model_of(MLP, *[SHARED] * 3),
    "biased experts": model_of(*[BIASED] * 4, sinks=True),
    "mixed": model_of(MLP, MOE, MLP, MOE, tied=True),
}


def job_of(model: ModelSpec, *, world_size: int = 1, precision: str = "fp32", **fields: Any) -> Job:
    """A job of 4 microbatches in all, in fp32 unless said; ``memory__x=1`` sets a field of a part of it."""
    job = Job(
        model=model,
        cluster=cluster_preset("cpu", devices_per_node=world_size),
        batch=Batch(seq_len=SEQ_LEN, mbs=2, gbs=8),
        precision=Precision(params=precision),
        optimizer=Optimizer(lr=2e-3, lr_schedule=ConstantLr()),
        layout=Layout(),
        memory=Memory(distributed_optimizer=False),
        comm=Comm(),
    )
    for name, value in fields.items():
        part, _, field = name.partition("__")
        job = attrs.evolve(job, **{part: attrs.evolve(getattr(job, part), **{field: value})})
    return job
