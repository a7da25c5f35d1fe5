"""What a rank's layers really keep for their backward, with kernels that keep as little as their gradients need.

The kernels here stand for the fused ones of an accelerator: their forwards are those of the reference, and what they
save is what the planner counts of each. What the rest keeps (projections, residuals, experts, loss) is Megatron-core's.
"""

from typing import Any

import torch
from torch import distributed

from ridgeline.core.job import Job
from ridgeline.kernels.device import open_device
from ridgeline.kernels.reference.attention import attention
from ridgeline.kernels.reference.rms_norm import rms_norm
from ridgeline.kernels.reference.rope import rope
from ridgeline.kernels.reference.swiglu import swiglu
from ridgeline.models.program import lower
from ridgeline.models.runtime.model import build_chunk, build_config, in_precision, initialize
from ridgeline.models.runtime.sequences import sequences_of
from ridgeline.parallel.plan import plan
from ridgeline.parallel.runtime.groups import process_groups
from tests.checkpoint.training import batch_of


class _Lean(torch.autograd.Function):
    """A function that saves given tensors; nothing here runs its backward."""

    @staticmethod
    def forward(ctx: Any, compute: Any, saves: Any, *inputs: torch.Tensor) -> torch.Tensor:
        output = compute(*inputs)
        ctx.save_for_backward(*saves(output, *inputs))
        return output


def lean_rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    def saves(output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, weight, torch.empty(x.shape[:-1], dtype=torch.float32)

    return _Lean.apply(lambda x, weight: rms_norm(x, weight, eps=eps), saves, x, weight)


def lean_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    return _Lean.apply(swiglu, lambda output, gate_up: (gate_up,), gate_up)


def lean_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return _Lean.apply(lambda x: rope(x, cos, sin), lambda output, x: (), x)


def lean_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    def saves(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = output.shape[0] * output.shape[1] * output.shape[2]
        return (*(x.contiguous() for x in inputs), output, *(torch.empty(rows, 8) for _ in range(2)))

    return _Lean.apply(lambda q, k, v: attention(q, k, v, **options).contiguous(), saves, q, k, v)


LEAN = {"rms_norm": lean_rms_norm, "swiglu": lean_swiglu, "rope": lean_rope, "attention": lean_attention}


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

        sequences = sequences_of(program.job.model, batch, device=torch.device("cpu"), dtype=config.params_dtype)
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
