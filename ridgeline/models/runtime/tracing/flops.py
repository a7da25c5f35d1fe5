"""FLOPs and bytes of an operation, of its shapes alone: a multiply-add counts as two, as in `core.flops`."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

BACKWARD_PRODUCTS = 5
"""Of attention, each half of its forward's: scores again, and the gradients of values, probabilities, keys, queries."""


ALLOCATIONS = frozenset(f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "set_"))
"""Operations that neither read nor write."""


def op_flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """FLOPs of one operation; 0 for all that is no matrix product."""
    if count := _OURS.get(func._schema.name):
        return count(args, kwargs, out)
    if count := flop_registry.get(func._overloadpacket):
        return count(*args, **kwargs, out_val=out)
    return 0


def op_bytes(tensors: Iterable[object]) -> int:
    """Bytes of the tensors that an operation reads and writes."""
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def _attention(args: Any, kwargs: Any, out: Any) -> int:
    query, key, value, heads, layout = args[:5]
    return _products(query, key, value, heads, layout)


def _attention_backward(args: Any, kwargs: Any, out: Any) -> int:
    query, key, value, _, heads, layout = args[:6]
    return _products(query, key, value, heads, layout) * BACKWARD_PRODUCTS // 2


def _products(query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str) -> int:
    """The two products of attention, over the whole rectangle of queries and keys, of packed documents together too."""
    sizes = {
        name: dict(zip(layout, tensor.shape, strict=False)) for name, tensor in (("q", query), ("k", key), ("v", value))
    }
    batch = sizes["q"].get("B", 1)
    queries, keys = (sizes[name].get("S", sizes[name].get("T", 1)) for name in "qk")
    kv_heads = key.shape[layout.index("N")] if "N" in layout else key.numel() * heads // query.numel() * queries // keys
    depth = query.numel() // (batch * queries * heads)
    width = value.numel() // (batch * keys * max(kv_heads, 1))
    return 2 * batch * heads * queries * keys * (depth + width)


def _grouped(args: Any, kwargs: Any, out: Any) -> int:
    x, weight = args[0][0], args[1][0]
    return 2 * x.shape[0] * x.shape[1] * weight.shape[-1]


def _grouped_sum(args: Any, kwargs: Any, out: Any) -> int:
    x, dy = args[1], args[2]
    return 2 * x.shape[0] * x.shape[1] * dy.shape[-1]


def _matmul(args: Any, kwargs: Any, out: Any) -> int:
    return 2 * out.numel() * args[0].shape[-1]


_OURS: Mapping[str, Callable[[Any, Any, Any], int]] = MappingProxyType(
    {
        "aten::matmul": _matmul,
        "npu::npu_fusion_attention": _attention,
        "npu::npu_fusion_attention_v2": _attention,
        "npu::npu_fusion_attention_grad": _attention_backward,
        "npu::npu_fusion_attention_grad_v2": _attention_backward,
        "npu::npu_grouped_matmul": _grouped,
        "npu::npu_grouped_matmul_add_": _grouped_sum,
    }
)
