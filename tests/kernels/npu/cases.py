"""A small call of every kernel that torch_npu has a part in, forward and backward, as data.

Tests run each on the emulated npu beside the reference, on fake tensors, and count which ops of torch_npu ran.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import torch
from torch import Tensor

from ridgeline.kernels.masks import CAUSAL, FULL, Band, Prefix, window


@attrs.frozen(kw_only=True)
class Case:
    """One call.

    Attributes:
        op: A row of the table.
        kernel: Which kernel of it.
        args: Makes the arguments: tensors that require a gradient get one.
        kwargs: Makes the named ones.
        changed: Positions of the arguments that the call changes in place.
        rtol: Relative tolerance; fp32's rounding over sums of a few dozen terms, unless the case is in half precision.
        atol: Absolute tolerance.
    """

    op: str
    kernel: str
    args: Callable[[], tuple[Any, ...]]
    kwargs: Callable[[], dict[str, Any]] = dict
    changed: tuple[int, ...] = ()
    rtol: float = 2e-5
    atol: float = 2e-5


def leaf(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers that want a gradient."""
    return (torch.randn(*shape) * scale).to(dtype).requires_grad_()


def fixed(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that want none."""
    return torch.randn(*shape).to(dtype)


def _attention(**kwargs: Any) -> Case:
    return Case(
        op="attention",
        kernel="npu_fusion_attention",
        args=lambda: (leaf(6, 2, 4, 8), leaf(6, 2, 2, 8), leaf(6, 2, 2, 8)),
        kwargs=lambda: {"scale": 8**-0.5, **kwargs},
    )


def _partial(mask: Any) -> Case:
    return Case(
        op="partial_attention",
        kernel="npu_fusion_attention",
        args=lambda: (fixed(4, 2, 4, 8), fixed(6, 2, 2, 8), fixed(6, 2, 2, 5)),
        kwargs=lambda: {"scale": 8**-0.5, "mask": mask},
    )


def _partial_grad(mask: Any) -> Case:
    """With a logarithm of sums that counts keys which are not given."""

    def args() -> tuple[Any, ...]:
        inputs = fixed(4, 2, 4, 5), fixed(4, 2, 4, 8), fixed(6, 2, 2, 8), fixed(6, 2, 2, 5)
        return *inputs, fixed(4, 2, 4, 5), fixed(2, 4, 4) * 0.1 + 3

    options = {"scale": 8**-0.5, "mask": mask}
    return Case(op="partial_attention_grad", kernel="npu_fusion_attention_grad", args=args, kwargs=lambda: options)


def _flash(mask: Any, **kwargs: Any) -> Case:
    """Two sequences in BNSD, with fewer queries than keys unless ALiBi stands among the arguments."""
    queries = 7 if "alibi_n" in kwargs else 5
    return Case(
        op="flash_attention",
        kernel="npu_fusion_attention",
        args=lambda: (leaf(2, 4, queries, 8), leaf(2, 2, 7, 8), leaf(2, 2, 7, 8)),
        kwargs=lambda: {"layout": "BNSD", "heads": 4, "scale": 8**-0.5, "mask": mask, **kwargs},
    )


def _rotary(width: int, interleaved: bool) -> Case:
    def args() -> tuple[Any, ...]:
        angles = torch.randn(5, 1, 1, width // 2)
        both = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
        return leaf(5, 2, 3, 8), both.cos(), both.sin()

    return Case(op="rope", kernel="npu_rotary_mul", args=args, kwargs=lambda: {"interleaved": interleaved})


def _grouped(*, accumulate: bool = False, dtype: torch.dtype = torch.float32) -> Case:
    def args() -> tuple[Any, ...]:
        weights = [leaf(5, 6, dtype=dtype) for _ in range(4)]
        return leaf(10, 6, dtype=dtype), weights, torch.tensor([3, 0, 5, 2])

    def kwargs() -> dict[str, Any]:
        return {"grad_sum_enk": fixed(4, 5, 6)} if accumulate else {}

    tolerance = 2e-5 if dtype == torch.float32 else _HALF
    return Case(
        op="grouped_matmul", kernel="npu_grouped_matmul", args=args, kwargs=kwargs, rtol=tolerance, atol=tolerance
    )


def _places(experts_tk: Tensor) -> Tensor:
    return experts_tk.flatten().argsort(stable=True).argsort().int()


def _routing_map() -> Tensor:
    return torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)


def _map_places(map_te: Tensor) -> Tensor:
    return map_te.t().nonzero()[:, 1].argsort(stable=True).int()


def _adamw(states: torch.dtype) -> Case:
    # The second step, so that a wrong power of beta shows.
    return Case(
        op="adamw",
        kernel="npu_apply_adam_w",
        args=lambda: (fixed(40), fixed(40), fixed(40).to(states), fixed(40).square().to(states)),
        kwargs=lambda: {"step": 2, "lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
        changed=(0, 2, 3),
    )


_EXPERTS = torch.tensor([[0, 2], [2, 1], [3, 0], [1, 2], [0, 3]])
_HALF = 2e-2  # bf16 keeps eight bits, and outputs are sums of rounded terms

CASES: Mapping[str, Case] = MappingProxyType(
    {
        "rms_norm": Case(
            op="rms_norm", kernel="npu_rms_norm", args=lambda: (leaf(4, 3, 16), leaf(16)), kwargs=lambda: {"eps": 1e-5}
        ),
        "rms_norm zero-centred": Case(
            op="rms_norm",
            kernel="npu_rms_norm",
            args=lambda: (leaf(4, 3, 16), leaf(16)),
            kwargs=lambda: {"eps": 1e-5, "zero_centred": True},
        ),
        "add_rms_norm": Case(
            op="add_rms_norm",
            kernel="npu_add_rms_norm",
            args=lambda: (leaf(4, 3, 16), leaf(4, 3, 16), leaf(16)),
            kwargs=lambda: {"eps": 1e-5},
        ),
        "swiglu": Case(op="swiglu", kernel="npu_swiglu", args=lambda: (leaf(4, 3, 16),)),
        "bounded_swiglu": Case(
            op="bounded_swiglu",
            kernel="npu_swiglu",
            args=lambda: (leaf(40, 16, scale=3.0),),
            kwargs=lambda: {"limit": 2.5},
        ),
        "geglu tanh": Case(
            op="geglu", kernel="npu_geglu", args=lambda: (leaf(4, 16),), kwargs=lambda: {"approximate": True}
        ),
        "geglu erf": Case(
            op="geglu", kernel="npu_geglu", args=lambda: (leaf(4, 16),), kwargs=lambda: {"approximate": False}
        ),
        "clamped_swiglu": Case(
            op="clamped_swiglu",
            kernel="npu_clipped_swiglu",
            args=lambda: (leaf(40, 16, scale=3.0),),
            kwargs=lambda: {"limit": 2.5, "alpha": 1.5},
        ),
        "clamped_swiglu halves": Case(
            op="clamped_swiglu",
            kernel="npu_clipped_swiglu",
            args=lambda: (leaf(40, 16, scale=3.0),),
            kwargs=lambda: {"limit": 2.5, "alpha": 1.5, "interleaved": False},
        ),
        "rope": _rotary(8, False),
        "rope interleaved": _rotary(8, True),
        "rope partial": _rotary(4, False),
        "rope partial interleaved": _rotary(6, True),
        "attention": _attention(),
        "attention window": _attention(window=3),
        "attention packed": _attention(cu_seqlens=torch.tensor([0, 4, 9, 12])),
        "attention packed window": _attention(cu_seqlens=torch.tensor([0, 4, 9, 12]), window=2),
        "partial attention": _partial(CAUSAL),
        "partial attention full": _partial(FULL),
        "partial attention window": _partial(window(3)),
        "partial attention gradient": _partial_grad(CAUSAL),
        "partial attention gradient full": _partial_grad(FULL),
        "flash full": _flash(FULL),
        "flash causal": _flash(CAUSAL),
        "flash window": _flash(window(3)),
        "flash band": _flash(Band(2, 1)),
        "flash prefix": _flash(Prefix((3, 6))),
        "flash mask": _flash(torch.tensor([[True] * 7, [False] * 3 + [True] * 4] * 2 + [[True, False] * 3 + [True]])),
        "flash alibi": _flash(CAUSAL, alibi_n=torch.tensor([0.5, 0.25, 0.125, 0.0625])),
        "flash sinks": Case(
            op="flash_attention",
            kernel="npu_fusion_attention",
            args=lambda: (leaf(2, 4, 5, 8), leaf(2, 2, 7, 8), leaf(2, 2, 7, 8)),
            kwargs=lambda: {"layout": "BNSD", "heads": 4, "scale": 0.3, "mask": CAUSAL, "sinks_n": leaf(4)},
        ),
        "masked_softmax": Case(
            op="masked_softmax",
            kernel="npu_scaled_masked_softmax",
            args=lambda: (leaf(1, 2, 32, 64), torch.ones(32, 64, dtype=torch.bool).triu(33)),
            kwargs=lambda: {"scale": 0.5},
        ),
        "grouped_matmul": _grouped(),
        "grouped_matmul bf16": _grouped(dtype=torch.bfloat16),
        "grouped_matmul accumulating": _grouped(accumulate=True),
        "grouped_matmul bf16 accumulating": _grouped(accumulate=True, dtype=torch.bfloat16),
        "matmul_add": Case(
            op="matmul_add", kernel="mm_add", args=lambda: (fixed(4, 6), fixed(5, 4), fixed(5, 6)), changed=(0,)
        ),
        "permute": Case(op="permute", kernel="npu_moe_token_permute", args=lambda: (leaf(5, 6), _EXPERTS)),
        "unpermute": Case(
            op="unpermute",
            kernel="npu_moe_token_unpermute",
            args=lambda: (leaf(10, 6), _places(_EXPERTS), leaf(5, 2)),
        ),
        "permute_by_map": Case(
            op="permute_by_map",
            kernel="npu_moe_token_permute_with_routing_map",
            args=lambda: (leaf(5, 6), _routing_map(), leaf(5, 4)),
            kwargs=lambda: {"topk": 2},
        ),
        "unpermute_by_map": Case(
            op="unpermute_by_map",
            kernel="npu_moe_token_unpermute_with_routing_map",
            args=lambda: (leaf(10, 6), _map_places(_routing_map()), _routing_map()),
        ),
        "router softmax": Case(
            op="router_topk",
            kernel="npu_moe_gating_top_k",
            args=lambda: (leaf(9, 8),),
            kwargs=lambda: {"topk": 3, "renormalise": True, "scale": 1.5},
        ),
        "router sigmoid": Case(
            op="router_topk",
            kernel="npu_moe_gating_top_k",
            args=lambda: (leaf(9, 12),),
            kwargs=lambda: {
                "topk": 3,
                "scoring": "sigmoid",
                "renormalise": True,
                "bias_e": fixed(12),
                "groups": 4,
                "groups_kept": 2,
                "scale": 2.5,
            },
        ),
        "cross_entropy": Case(
            op="cross_entropy",
            kernel="npu_cross_entropy_loss",
            args=lambda: (leaf(6, 11), torch.tensor([0, 10, 3, 3, 7, 1])),
        ),
        "adamw": _adamw(torch.float32),
        "adamw bf16 states": _adamw(torch.bfloat16),
        "lightning_indexer": Case(
            op="lightning_indexer",
            kernel="npu_lightning_indexer",
            args=lambda: (
                leaf(2, 4, 3, 128, dtype=torch.bfloat16, scale=0.3),
                leaf(2, 6, 128, dtype=torch.bfloat16, scale=0.3),
                leaf(2, 4, 3, dtype=torch.bfloat16),
            ),
            kwargs=lambda: {"topk": 3},
            rtol=_HALF,
            atol=_HALF,
        ),
        "sparse_attention": Case(
            op="sparse_attention",
            kernel="npu_sparse_flash_attention",
            args=lambda: (
                leaf(1, 4, 2, 512, dtype=torch.bfloat16, scale=0.3),
                leaf(1, 6, 512, dtype=torch.bfloat16, scale=0.3),
                torch.tensor([[[0, 2, -1], [3, 1, 0], [4, 0, 2], [5, 3, 1]]]),
            ),
            kwargs=lambda: {
                "query_rope_bsnr": leaf(1, 4, 2, 64, dtype=torch.bfloat16, scale=0.3),
                "key_rope_btr": leaf(1, 6, 64, dtype=torch.bfloat16, scale=0.3),
                "scale": 576**-0.5,
            },
            rtol=_HALF,
            atol=_HALF,
        ),
    }
)
