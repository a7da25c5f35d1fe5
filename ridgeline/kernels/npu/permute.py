"""Moving tokens to their experts and back on torch_npu.

Legend: ``t`` = tokens, ``k`` = experts a token chose, ``e`` = experts, ``m`` = t*k rows, ``h`` = hidden.
"""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless

MAX_TOPK = 512
MAX_ROWS = 2**24 - 2
INTEGERS = (torch.int32, torch.int64)


def permute(tokens_th: Tensor, experts_tk: Tensor) -> tuple[Tensor, Tensor]:
    """As `ridgeline.kernels.reference.permute.permute`; up to 512 choices a token and 2^24 - 2 rows."""
    refuse_dtypes("permute", allowed=INTEGERS, experts_tk=experts_tk)
    refuse_shape("permute", "experts_tk", experts_tk, (len(tokens_th), experts_tk.shape[-1]))
    _check("permute", tokens_th, topk=experts_tk.shape[1], rows=experts_tk.numel())
    return torch.ops.npu.npu_moe_token_permute(tokens_th, experts_tk)


def unpermute(rows_mh: Tensor, places_m: Tensor, weights_tk: Tensor) -> Tensor:
    """As `ridgeline.kernels.reference.permute.unpermute`, with the same bounds."""
    refuse_dtypes("unpermute", allowed=(torch.int32,), places_m=places_m)
    refuse_shape("unpermute", "places_m", places_m, (weights_tk.numel(),))
    refuse_shape("unpermute", "rows_mh", rows_mh, (weights_tk.numel(), rows_mh.shape[-1]))
    _check("unpermute", rows_mh, topk=weights_tk.shape[1], rows=len(rows_mh))
    return torch.ops.npu.npu_moe_token_unpermute(rows_mh, places_m, weights_tk)


def permute_by_map(
    tokens_th: Tensor, map_te: Tensor, weights_te: Tensor, *, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ridgeline.kernels.reference.permute.permute_by_map`, with the same bounds."""
    refuse_dtypes("permute_by_map", allowed=(torch.bool,), map_te=map_te)
    refuse_shape("permute_by_map", "map_te", map_te, (len(tokens_th), map_te.shape[-1]))
    refuse_shape("permute_by_map", "weights_te", weights_te, tuple(map_te.shape))
    rows = topk * len(tokens_th)
    _check("permute_by_map", tokens_th, topk=topk, rows=rows)
    return torch.ops.npu.npu_moe_token_permute_with_routing_map(
        tokens_th, map_te, probs=weights_te, num_out_tokens=rows
    )


def unpermute_by_map(rows_mh: Tensor, places_m: Tensor, map_te: Tensor) -> Tensor:
    """As `ridgeline.kernels.reference.permute.unpermute_by_map`, with the same bounds."""
    refuse_dtypes("unpermute_by_map", allowed=(torch.bool,), map_te=map_te)
    refuse_shape("unpermute_by_map", "places_m", places_m, (len(rows_mh),))
    tokens, rule = len(map_te), "must be a multiple of the tokens, the rows of each"
    refuse_unless(len(rows_mh) % tokens == 0, "unpermute_by_map", "m", len(rows_mh), rule)
    _check("unpermute_by_map", rows_mh, topk=len(rows_mh) // map_te.shape[0], rows=len(rows_mh))
    shape = [map_te.shape[0], rows_mh.shape[1]]
    return torch.ops.npu.npu_moe_token_unpermute_with_routing_map(rows_mh, places_m, shape)


def _check(op: str, rows_mh: Tensor, *, topk: int, rows: int) -> None:
    refuse_dtypes(op, rows_mh=rows_mh)
    refuse_unless(topk <= MAX_TOPK, op, "topk", topk, f"must be <= {MAX_TOPK}")
    refuse_unless(rows <= MAX_ROWS, op, "rows", rows, f"must be <= {MAX_ROWS}", "use a smaller microbatch")
