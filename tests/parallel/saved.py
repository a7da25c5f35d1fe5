"""What a rank's layers really keep for their backward, with kernels that keep as little as their gradients need.

The kernels here stand for the fused ones of an accelerator: their forwards are those of the reference, and what they
save is what the planner counts of each. What the rest keeps (projections, residuals, experts, loss) is Megatron-core's.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed

from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.kernels.reference.attention import attention
from ridgeline.kernels.reference.grouped_matmul import grouped_matmul
from ridgeline.kernels.reference.layer_norm import layer_norm
from ridgeline.kernels.reference.lightning_indexer import lightning_indexer
from ridgeline.kernels.reference.rms_norm import rms_norm
from ridgeline.kernels.reference.rope import rope
from ridgeline.kernels.reference.sparse_attention import sparse_attention
from ridgeline.kernels.reference.swiglu import swiglu
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import Built, build
from ridgeline.models.runtime.model import build_chunk, build_config, in_precision, initialize
from ridgeline.models.runtime.sequences import sequences_of
from ridgeline.models.runtime.step import train_step
from ridgeline.parallel.plan import plan
from ridgeline.parallel.runtime.groups import process_groups
from tests.checkpoint.training import batch_of, microbatches


class _Lean(torch.autograd.Function):
    """A function that saves given tensors; nothing here runs its backward."""

    @staticmethod
    def forward(ctx: Any, compute: Any, saves: Any, *inputs: torch.Tensor) -> torch.Tensor:
        output = compute(*inputs)
        ctx.save_for_backward(*saves(output, *inputs))
        return output


def lean_rms_norm(x: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
    def saves(output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, weight, torch.empty(x.shape[:-1], dtype=torch.float32)

    return _Lean.apply(lambda x, weight: rms_norm(x, weight, **options), saves, x, weight)


def lean_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    return _Lean.apply(swiglu, lambda output, gate_up: (gate_up,), gate_up)


def lean_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **options: Any) -> torch.Tensor:
    return _Lean.apply(lambda x: rope(x, cos, sin, **options), lambda output, x: (), x)


def lean_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    def saves(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = output.shape[0] * output.shape[1] * output.shape[2]
        return (*(x.contiguous() for x in inputs), output, *(torch.empty(rows, 8) for _ in range(2)))

    return _Lean.apply(lambda q, k, v: attention(q, k, v, **options).contiguous(), saves, q, k, v)


def lean_lightning_indexer(*inputs: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        indices, scores = lightning_indexer(*inputs, topk=topk)

    def saves(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*(x.contiguous() for x in inputs), indices)

    return indices, _Lean.apply(lambda *inputs: scores, saves, *inputs)


def lean_sparse_attention(
    query: torch.Tensor,
    latent: torch.Tensor,
    indices: torch.Tensor,
    *,
    query_rope_bsnr: torch.Tensor,
    key_rope_btr: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    def compute(query: torch.Tensor, latent: torch.Tensor, *turned: torch.Tensor) -> torch.Tensor:
        turns = dict(zip(("query_rope_bsnr", "key_rope_btr"), turned, strict=True))
        return sparse_attention(query, latent, indices, **turns, scale=scale).contiguous()

    def saves(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        statistics = (torch.empty(output.shape[:3]) for _ in range(2))
        return (*(x.contiguous() for x in inputs), indices.contiguous(), output, *statistics)

    return _Lean.apply(compute, saves, query, latent, query_rope_bsnr, key_rope_btr)


LEAN = {
    "rms_norm": lean_rms_norm,
    "swiglu": lean_swiglu,
    "rope": lean_rope,
    "attention": lean_attention,
    "layer_norm": layer_norm,
    "lightning_indexer": lean_lightning_indexer,
    "sparse_attention": lean_sparse_attention,
    "grouped_matmul": grouped_matmul,  # which saves its rows, and nothing more
}


def saved_bytes(job: Job) -> int:
    """Bytes of all tensors, weights apart, that a forward of this rank's only stage keeps."""
    program = lower(plan(job), distributed.get_rank())
    device = open_device("cpu")
    with device.bridge(), process_groups(job.layout, world_size=job.cluster.world_size, seed=1):
        config = build_config(program)
        bare = build_chunk(program, 0, config, LEAN)
        initialize(program, [bare])
        chunk = in_precision(config, bare)
        batch = batch_of(range(job.batch.mbs), seq_len=job.batch.seq_len, vocab=job.model.vocab_size)
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        where = {"device": torch.device("cpu"), "dtype": config.params_dtype}
        sequences = sequences_of(program.job.model, batch, pieces=program.data.pieces, **where)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = chunk(
                input_ids=batch.tokens,
                position_ids=None,
                attention_mask=None,
                labels=batch.labels,
                packed_seq_params=sequences,
            )
        weights = {param.untyped_storage()._cdata for param in chunk.parameters()}
        tables = {
            t.untyped_storage()._cdata for table in sequences.tables.values() for t in (table.cos_sb1d, table.sin_sb1d)
        }
        assert loss.requires_grad
        return sum(storage.nbytes() for key, storage in kept.items() if key not in weights | tables)


def state_bytes(job: Job) -> dict[str, dict[str, int]]:
    """Bytes of weights, gradients, masters and moments of this rank, before its first step and right after."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        before = _states(built)
        train_step(built, microbatches(built, 0), step=0)
        return {"before": before, "after": _states(built)}


def _states(built: Built) -> dict[str, int]:
    buffers = [one for chunk in built.chunks for one in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    weights = _storages(param for chunk in built.chunks for param in chunk.parameters())
    grads = _storages(buffer.grad_data for buffer in buffers)
    inner = [chained.optimizer for chained in built.optimizer.chained_optimizers]
    mains = [param for adam in inner for group in adam.param_groups for param in group["params"]]
    copies = _storages(param.grad for param in mains if param.grad is not None)
    moments = _storages(
        value for adam in inner for state in adam.state.values() for name, value in state.items() if name != "step"
    )
    return {
        "params": sum(weights.values()),
        "grads": sum(grads.values()),
        "masters": sum(size for key, size in _storages(mains).items() if key not in weights),
        "moments": sum(moments.values()),
        "main_grads": sum(size for key, size in copies.items() if key not in grads),
    }


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each storage, by its address."""
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if one.numel()}
