"""The lightning indexer of DeepSeek's sparse attention on torch_npu.

Legend: as in `ridgeline.kernels.reference.lightning_indexer`.
"""

import torch
from torch import Tensor

from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_shape, refuse_unless

HEAD_DIM = 128
TOPK = (*range(1, 2049), *range(3072, 8193, 1024))
_CAUSAL_FROM_THE_END = 3


def lightning_indexer(query_bsnd: Tensor, key_btd: Tensor, weights_bsn: Tensor, *, topk: int) -> tuple[Tensor, Tensor]:
    """As `ridgeline.kernels.reference.lightning_indexer.lightning_indexer`; half precision, head_dim 128."""
    half = (torch.bfloat16, torch.float16)
    refuse_dtypes("lightning_indexer", allowed=half, query_bsnd=query_bsnd, key_btd=key_btd, weights_bsn=weights_bsn)
    head_dim = query_bsnd.shape[-1]
    refuse_unless(head_dim == HEAD_DIM, "lightning_indexer", "head_dim", head_dim, f"must be {HEAD_DIM}")
    refuse_unless(topk in TOPK, "lightning_indexer", "topk", topk, "must be 1 .. 2048, or a multiple of 1024 to 8192")
    keys = key_btd.shape[1]
    refuse_shape("lightning_indexer", "key_btd", key_btd, (len(query_bsnd), keys, head_dim))
    refuse_shape("lightning_indexer", "weights_bsn", weights_bsn, tuple(query_bsnd.shape[:3]))
    indices, scores = torch.ops.npu.npu_lightning_indexer(
        query_bsnd.contiguous(),
        key_btd.unsqueeze(2).contiguous(),
        weights_bsn.contiguous(),
        sparse_count=topk,
        sparse_mode=_CAUSAL_FROM_THE_END,
        return_value=True,
    )
    return indices.squeeze(2), scores.squeeze(2)
