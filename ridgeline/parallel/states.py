"""What a rank holds whatever runs: weights, gradients and the optimizer's state, in each of a step's phases.

    first forward and backward    params + grads + masters
    every update                  params + grads + masters + moments, fp32 copies of half gradients, Adam's own tensors
    later forwards and backwards  params + grads + masters + moments

Bytes a trained parameter, d ranks sharing the optimizer's state (1 without the distributed optimizer):

    bf16, fp32 gradients          2 + 4 + (4 + 8)/d
    half gradients                2 + 2 + (4 + 8)/d, and 4/d more in an update
    masters as low bits           2 + 4 + (2 + 8)/d
    bf16 moments                  2 + 4 + (4 + 4)/d
    fp32                          4 + 4 + 8/d

Source:
    megatron-core 0.16.1: optimizer/distrib_optimizer.py and optimizer/optimizer.py (masters are made with the
    optimizer, fp32 copies of half gradients in `_copy_model_grads_to_main_grads`, and dropped by the next `zero_grad`);
    torch.optim.AdamW makes the moments in its first step. Ascend/MindSpeed 2.0.0_core_r0.8.0: core/memory/reuse_param
    (low bits), core/optimizer/swap_optimizer; MindSpeed-LLM 2.0.0, tasks/models/common/adamw.py (bf16 moments are
    widened a tensor at a time).
"""

from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.job import Job
from ridgeline.parallel.held import WIDTHS, Held
from ridgeline.parallel.mesh import Mesh

TEMPORARIES: Mapping[str, int] = MappingProxyType({"torch": 2, "npu_apply_adam_w": 1, "npu_fused_adamw": 0})
"""fp32 tensors as large as a parameter that Adam's kernel makes beside it."""
UPDATE_WORKSPACE_BYTES = 16 * 2**20
"""What an update takes at the least: the difference of peak and static memory in MindSpeed-LLM's runs since 2.2."""
SWAP_TIMES = 16
"""Parts in which a swapped optimizer state comes to the device (MindSpeed's swap-optimizer-times)."""


class States(NamedTuple):
    """Bytes on one rank. ``main_grads`` and ``update`` live during the optimizer's step only."""

    params: int
    grads: int
    masters: int
    moments: int
    main_grads: int
    update: int

    @property
    def optimizer(self) -> int:
        """Masters and moments."""
        return self.masters + self.moments


def states_of(job: Job, *, mesh: Mesh, held: Sequence[Held]) -> States:
    """The states of a rank that holds these stages."""
    memory, precision = job.memory, job.precision
    width, grad_width = WIDTHS[precision.params], WIDTHS[precision.grads]
    trained, frozen = sum(one.buffers for one in held), sum(one.frozen_bytes for one in held)
    largest, owned = max(one.largest for one in held), trained
    shared = mesh.dp * mesh.cp if memory.distributed_optimizer else 1
    if memory.distributed_optimizer:
        dense = sum(one.dense_buffer + one.tied_buffer for one in held) // shared
        owned = dense + sum(one.expert_buffer for one in held) // mesh.edp
        largest = min(largest, owned)
    masters = 0 if width == 4 else owned * (4 if precision.masters == "fp32" else 2)
    moments = owned * 2 * WIDTHS[precision.moments]
    temporaries = TEMPORARIES[job.optimizer.kernel]
    if precision.masters == "low_bits" and not shared > 1:
        temporaries = max(temporaries, 1)  # both halves of a weight, put together
    if precision.moments == "bf16":
        temporaries += 2  # widened for the kernel
    update = max(largest * 4 * temporaries, UPDATE_WORKSPACE_BYTES)
    if memory.swap_optimizer:
        update += ceil((masters + moments) / SWAP_TIMES)
        masters = moments = 0
    return States(
        params=trained * width + frozen,
        grads=trained * grad_width,
        masters=masters,
        moments=moments,
        main_grads=owned * 4 if grad_width < 4 else 0,
        update=update,
    )
