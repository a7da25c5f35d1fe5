"""Small jobs to plan, any field of them changed by its dotted path."""

from typing import Any

import attrs

from ridgeline.core.job import Batch, Job
from ridgeline.core.model import Attention, Block, Indexer, LatentAttention, Mlp, ModelSpec, Moe, Repeat
from ridgeline.parallel.clusters import cluster_preset


def dense_model(
    *, layers: int = 8, hidden: int = 64, heads: int = 8, kv_heads: int = 4, ffn: int = 96, **fields: Any
) -> ModelSpec:
    attention = Attention(
        heads=heads, kv_heads=kv_heads, head_dim=fields.pop("head_dim", hidden // heads), **fields.pop("attention", {})
    )
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=ffn))
    return ModelSpec(
        **{
            "vocab_size": 128,
            "max_position": 256,
            "hidden": hidden,
            "blocks": (Repeat(block=block, count=layers),),
            **fields,
        }
    )


def moe_model(
    *, layers: int = 8, experts: int = 8, topk: int = 2, ffn: int = 32, dense_layers: int = 0, **fields: Any
) -> ModelSpec:
    moe = Moe(experts=experts, topk=topk, ffn_hidden=ffn, **fields.pop("moe", {}))
    model = dense_model(layers=layers, **fields)
    dense = model.blocks[0].block
    sparse = attrs.evolve(dense, feed_forward=moe)
    first = (Repeat(block=dense, count=dense_layers),) if dense_layers else ()
    return attrs.evolve(model, blocks=(*first, Repeat(block=sparse, count=layers - dense_layers)))


def indexed_model(*, layers: int = 4, topk: int = 8, shares: bool = False, **fields: Any) -> ModelSpec:
    """A dense model whose attention sees the positions that an indexer chooses, or ``shares`` with the layer below."""
    mixer = LatentAttention(
        heads=8,
        q_lora_rank=48,
        kv_lora_rank=40,
        nope_head_dim=16,
        rope_head_dim=8,
        v_head_dim=24,
        indexer=Indexer(heads=4, head_dim=32, topk=topk),
    )
    model = dense_model(layers=layers, **fields)
    indexed = [
        changed(model.blocks[0].block, mixer=changed(mixer, indexer__shared=shares and index % 2 == 1))
        for index in range(layers)
    ]
    return attrs.evolve(model, blocks=tuple(Repeat(block=block, count=1) for block in indexed))


def job_of(model: ModelSpec, *, world_size: int = 8, **changes: Any) -> Job:
    """A job on a cpu cluster of so many ranks; ``layout__tp=2`` changes ``job.layout.tp``."""
    cluster = cluster_preset("cpu", devices_per_node=world_size)
    return changed(Job(model=model, cluster=cluster, batch=Batch(seq_len=64, mbs=1, gbs=32)), **changes)


def changed(spec: Any, **changes: Any) -> Any:
    """The spec with fields changed by dotted path, dots written as ``__``; parts of one spec change together."""
    here = {path: value for path, value in changes.items() if "__" not in path}
    below: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        if "__" in path:
            name, rest = path.split("__", 1)
            below.setdefault(name, {})[rest] = value
    return attrs.evolve(spec, **here, **{name: changed(getattr(spec, name), **rest) for name, rest in below.items()})


DENSE = dense_model()
MOE = moe_model()
