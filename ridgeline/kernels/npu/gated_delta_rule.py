"""The gated delta rule by the triton kernels of flash-linear-attention, which triton-ascend compiles for an npu."""

import importlib

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless


def gated_delta_rule(
    query_bsnk: Tensor,
    key_bsnk: Tensor,
    value_bsnv: Tensor,
    *,
    log_decay_bsn: Tensor,
    beta_bsn: Tensor,
    scale: float,
    state_bnkv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the reference, for half precision and heads of up to 256 elements.

    Raises:
        LoweringError: A dtype or a size that the kernels do not take.

    Source:
        fla-core 0.6.0, fla/ops/gated_delta_rule/chunk.py; its limits, fla/ops/common/backends/triton_ascend.
    """
    op = "gated_delta_rule"
    half = (torch.bfloat16, torch.float16)
    refuse_dtypes(op, allowed=half, query_bsnk=query_bsnk, key_bsnk=key_bsnk, value_bsnv=value_bsnv)
    refuse_dtypes(op, allowed=(torch.float32,), log_decay_bsn=log_decay_bsn)
    for path, size in (("k", key_bsnk.shape[-1]), ("v", value_bsnv.shape[-1])):
        refuse_unless(
            size <= 256 and size % 2 == 0, op, path, size, "must be even and <= 256", "use the kernel 'torch'"
        )
    places = tuple(query_bsnk.shape[:3])
    refuse_shape(op, "key_bsnk", key_bsnk, tuple(query_bsnk.shape))
    refuse_shape(op, "value_bsnv", value_bsnv, (*places, value_bsnv.shape[-1]))
    refuse_shape(op, "log_decay_bsn", log_decay_bsn, places)
    refuse_shape(op, "beta_bsn", beta_bsn, places)
    chunk_gated_delta_rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return chunk_gated_delta_rule(
        q=query_bsnk,
        k=key_bsnk,
        v=value_bsnv,
        g=log_decay_bsn,
        beta=beta_bsn,
        scale=scale,
        initial_state=state_bnkv,
        output_final_state=True,
    )
