"""Flash attention on torch_npu.

Legend: as in `ridgeline.kernels.reference.flash_attention`.
"""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import get_args

import attrs
import torch
from torch import Tensor

from ridgeline.core.errors import one_of
from ridgeline.kernels.masks import CAUSAL, FULL, Band, Prefix
from ridgeline.kernels.npu.refuse import refuse_dtypes, refuse_unless
from ridgeline.kernels.npu.template import template
from ridgeline.kernels.reference.flash_attention import Layout, Mask

MAX_HEAD_DIM = 768
MAX_HEADS = 256
MAX_PREFIXES = 32
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
LENGTH_DIM: Mapping[Layout, int] = MappingProxyType({"SBH": 0, "BSH": 1, "BSND": 1, "BNSD": 2, "TND": 0})
"""Along which dim the positions of a sequence stand."""
UNBOUNDED = 2**31 - 1
_SLOPES = 2
"""The kind of a bias that the kernel makes itself, from ALiBi's slopes."""


@attrs.frozen(kw_only=True, eq=False)
class MaskArguments:
    """A mask as the kernel takes it.

    Attributes:
        atten_mask: True hides; of some modes a template of fixed size. None hides nothing.
        sparse_mode: How to read it.
        before: Keys that a query sees before itself, in band mode.
        after: Keys after it.
        prefix: Keys of each sequence that all its queries see, in prefix mode.
    """

    atten_mask: Tensor | None
    sparse_mode: int
    before: int = UNBOUNDED
    after: int = UNBOUNDED
    prefix: list[int] | None = None


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout,
    heads: int,
    scale: float,
    mask: Mask = CAUSAL,
    q_lengths: Sequence[int] | None = None,
    kv_lengths: Sequence[int] | None = None,
    sinks_n: Tensor | None = None,
    alibi_n: Tensor | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `ridgeline.kernels.reference.flash_attention.flash_attention`.

    Takes up to 256 heads, head_dim up to 768 and not below that of the values; no soft-cap; ALiBi with as many queries
    as keys; prefixes of up to 32 sequences.
    """
    check_call(query, key, value, layout=layout, heads=heads, mask=mask, softcap=softcap, q_lengths=q_lengths)
    arguments = mask_arguments(mask, device=query.device)
    ends = {
        "actual_seq_qlen": None if q_lengths is None else list(itertools.accumulate(q_lengths)),
        "actual_seq_kvlen": None if kv_lengths is None else list(itertools.accumulate(kv_lengths)),
    }
    shared = {
        "atten_mask": arguments.atten_mask,
        "sparse_mode": arguments.sparse_mode,
        "prefix": arguments.prefix,
        "scale": scale,
        "keep_prob": 1.0 - dropout,
        "sink": None if sinks_n is None else sinks_n.float(),
    }
    if alibi_n is None:
        return torch.ops.npu.npu_fusion_attention(
            query,
            key,
            value,
            heads,
            layout,
            pre_tockens=arguments.before,
            next_tockens=arguments.after,
            **shared,
            **ends,
        )[0]
    _check_alibi(query, key, layout, q_lengths, kv_lengths)
    return torch.ops.npu.npu_fusion_attention_v2(
        query,
        key,
        value,
        heads,
        layout,
        pse=alibi_n.float(),
        pse_type=_SLOPES,
        q_start_idx=[0],
        kv_start_idx=[0],
        pre_tokens=arguments.before,
        next_tokens=arguments.after,
        **shared,
        **ends,
    )[0]


def mask_arguments(mask: Mask, *, device: torch.device) -> MaskArguments:
    """A mask in the kernel's words. Compressed modes, whose mask is a template, hold no more than 6 MiB."""
    if isinstance(mask, Tensor):
        return MaskArguments(atten_mask=~mask, sparse_mode=1)
    if mask == FULL:
        return MaskArguments(atten_mask=None, sparse_mode=0)
    triangle = template(device)
    if isinstance(mask, Prefix):
        below = torch.zeros(1024, 2048, dtype=torch.bool, device=device)
        below[:, 1024:] = True
        return MaskArguments(atten_mask=torch.cat((triangle, below)), sparse_mode=6, prefix=list(mask.lengths))
    if mask == CAUSAL:
        return MaskArguments(atten_mask=triangle, sparse_mode=3)
    before = UNBOUNDED if mask.before is None else mask.before
    after = UNBOUNDED if mask.after is None else mask.after
    return MaskArguments(atten_mask=triangle, sparse_mode=4, before=before, after=after)


def check_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout,
    heads: int,
    mask: Mask,
    softcap: float | None = None,
    q_lengths: Sequence[int] | None = None,
    op: str = "flash_attention",
) -> None:
    """Refuse what the kernel cannot take.

    Raises:
        LoweringError: The op, the value, the rule, and what would work.
    """
    refuse_dtypes(op, query=query, key=key, value=value)
    refuse_unless(layout in LAYOUTS, op, "layout", layout, one_of(LAYOUTS))
    dims = 4 if layout in ("BSND", "BNSD") else 3
    for path, tensor in (("query", query), ("key", key), ("value", value)):
        refuse_unless(tensor.dim() == dims, op, f"{path}.dim()", tensor.dim(), f"must be {dims} in layout {layout}")
    flat = layout in ("SBH", "BSH")
    head_dim = query.shape[-1] // heads if flat else query.shape[-1]
    value_dim = value.shape[-1] * head_dim // key.shape[-1] if flat else value.shape[-1]
    refuse_unless(heads <= MAX_HEADS, op, "heads", heads, f"must be <= {MAX_HEADS}", "raise tp")
    refuse_unless(head_dim <= MAX_HEAD_DIM, op, "head_dim", head_dim, f"must be <= {MAX_HEAD_DIM}")
    rule = f"must be <= head_dim={head_dim}"
    refuse_unless(value_dim <= head_dim, op, "value_head_dim", value_dim, rule, "pad queries and keys")
    refuse_unless(softcap is None, op, "softcap", softcap, "no npu kernel has it", "use the kernel 'torch'")
    varlen = layout == "TND"
    refuse_unless(varlen == (q_lengths is not None), op, "layout", layout, "lengths belong to TND, and to TND alone")
    banded = isinstance(mask, Band)
    refuse_unless(banded or not varlen, op, "mask", mask, "TND takes bands only", "use another layout")
    if isinstance(mask, Tensor):
        refuse_dtypes(op, allowed=(torch.bool,), mask=mask)
        sizes = tuple(tensor.shape[LENGTH_DIM[layout]] for tensor in (query, key))
        refuse_unless(mask.shape[-2:] == sizes, op, "mask.shape", tuple(mask.shape), f"must end in {sizes}")
    if isinstance(mask, Prefix):
        count = len(mask.lengths)
        refuse_unless(count <= MAX_PREFIXES, op, "mask.lengths", count, f"must be <= {MAX_PREFIXES}", "lower mbs")


def _check_alibi(
    query: Tensor, key: Tensor, layout: Layout, q_lengths: Sequence[int] | None, kv_lengths: Sequence[int] | None
) -> None:
    """The kernel measures distances from the first query and the first key, we from the last."""
    dim = LENGTH_DIM[layout]
    equal = query.shape[dim] == key.shape[dim] and (q_lengths is None or list(q_lengths) == list(kv_lengths or ()))
    refuse_unless(
        equal, "flash_attention", "alibi_n", "given", "needs as many queries as keys", "use the kernel 'torch'"
    )
