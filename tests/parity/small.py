"""Models of a few thousand parameters and the jobs that train them; no two sizes of a model are equal."""

from typing import Any

import attrs

from ridgeline.core.job import Batch, Comm, ConstantLr, Job, Memory, Optimizer, Precision
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Block, FeedForward, Mlp, ModelSpec, Moe, Repeat
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


MODELS = {
    "dense": model_of(*[MLP] * 4),
    "tied": model_of(*[MLP] * 4, tied=True),
    "moe": model_of(*[MOE] * 4),
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
