"""What torch_npu 2.13.0 lacks or gets wrong, as far as we meet it, and what mends it on the virtual NPU.

Each row has a probe. A test asks every probe whether the gap is still there, and so fails on the day that torch_npu
closes it: then the row goes.
"""

import functools
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors


@attrs.frozen(kw_only=True)
class Gap:
    """One op.

    Attributes:
        op: Its name.
        what: What is missing or wrong.
        probe: Uses the op on fake npu tensors; raises while the gap is there.
        fake: Shapes and dtypes of its outputs, where that mends it; None where our kernels work around it.
        around: How our kernels do without, where no fake mends it.
    """

    op: str
    what: str
    probe: Callable[[], object]
    fake: Callable[..., Any] | None = None
    around: str = ""


@functools.cache
def mend() -> torch.library.Library:
    """Mend every gap that a fake mends, for meta and fake tensors of this process, for good as torch_npu itself."""
    library = torch.library.Library("npu", "IMPL", "Meta")
    for gap in GAPS:
        if gap.fake is not None:
            library.impl(gap.op.removeprefix("npu::"), gap.fake, allow_override=True)
    return library  # which holds the registrations


def _leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, device="npu", dtype=dtype, requires_grad=True)


def _attention_v2_backward() -> None:
    q, k, v = (_leaf(1, 2, 16, 32) for _ in range(3))
    torch.ops.npu.npu_fusion_attention_v2(q, k, v, 2, "BNSD")[0].sum().backward()


def _attention_grad_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    sink: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    dpse, dquery_rope, dkey_rope = (query.new_empty(0) for _ in range(3))
    dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))
    return dq, dk, dv, dpse, dquery_rope, dkey_rope, None if sink is None else torch.empty_like(sink)


def _geglu_backward() -> None:
    torch.ops.npu.npu_geglu(_leaf(4, 8), -1, 1, True)[0].sum().backward()


def _geglu_grad(
    grad_output: Tensor, input: Tensor, gelu: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False
) -> Tensor:
    return torch.empty_like(input)


def _gating_backward() -> None:
    scores = torch.ops.npu.npu_moe_gating_top_k(_leaf(4, 8, dtype=torch.float32), 2, norm_type=1, out_flag=True)[0]
    scores.sum().backward()


def _gating_grad(x_norm: Tensor, grad_y: Tensor, expertIdx: Tensor, **unused: Any) -> Tensor:  # noqa: N803
    return torch.empty_like(x_norm, dtype=grad_y.dtype)


def _online_max_sum() -> None:
    torch.ops.npu.npu_fused_linear_online_max_sum(
        _leaf(4, 8), _leaf(16, 8), torch.empty(4, device="npu", dtype=torch.int64), 0, 16
    )


def _flatten() -> None:
    _flatten_dense_tensors([torch.empty(4, device="npu"), torch.empty(4, device="npu")])


def _format_cast(self: Tensor, *formats: Any, **named: Any) -> Tensor:
    return torch.empty_like(self)


def _add_rms_norm_backward() -> None:
    torch.ops.npu.npu_add_rms_norm(_leaf(4, 8), _leaf(4, 8), _leaf(8))[0].sum().backward()


def _grouped_matmul_backward() -> None:
    x, w = _leaf(4, 8), _leaf(2, 8, 16)
    counts = torch.empty(2, device="npu", dtype=torch.int64)
    out = torch.ops.npu.npu_grouped_matmul([x], [w], group_list=counts, split_item=3, group_type=0, group_list_type=1)
    _backward(out[0], x, w)


def _clipped_swiglu_backward() -> None:
    x = _leaf(4, 8)
    _backward(torch.ops.npu.npu_clipped_swiglu(x), x)


def _gating_softmax_backward() -> None:
    x = _leaf(4, 8)
    _backward(torch.ops.npu.npu_moe_gating_top_k_softmax(x, None, 2)[0], x)


def _backward(out: Tensor, *inputs: Tensor) -> None:
    out.sum().backward()
    assert all(x.grad is not None for x in inputs), "no gradient"


GAPS: tuple[Gap, ...] = (
    Gap(
        op="npu::npu_fusion_attention_grad_v2",
        what="its meta function makes an empty tensor like a list: TypeError",
        probe=_attention_v2_backward,
        fake=_attention_grad_v2,
    ),
    Gap(
        op="npu::npu_geglu_grad",
        what="its meta function has fewer arguments than its schema: TypeError",
        probe=_geglu_backward,
        fake=_geglu_grad,
    ),
    Gap(
        op="npu::npu_moe_gating_top_k_backward",
        what="it has no meta function",
        probe=_gating_backward,
        fake=_gating_grad,
    ),
    Gap(
        op="npu::npu_fused_linear_online_max_sum",
        what="it has no meta function",
        probe=_online_max_sum,
        around="the fused head of the vocabulary is the reference's, chunk by chunk",
    ),
    Gap(
        op="npu::npu_format_cast",
        what="it has no meta function, and flattening tensors calls it",
        probe=_flatten,
        fake=_format_cast,
    ),
    Gap(
        op="npu::npu_add_rms_norm",
        what="it has no derivative",
        probe=_add_rms_norm_backward,
        around="kernels/npu/add_rms_norm.py calls npu_rms_norm_backward itself",
    ),
    Gap(
        op="npu::npu_grouped_matmul",
        what="it has no derivative",
        probe=_grouped_matmul_backward,
        around="kernels/npu/grouped_matmul.py is its own",
    ),
    Gap(
        op="npu::npu_clipped_swiglu",
        what="it has no derivative",
        probe=_clipped_swiglu_backward,
        around="kernels/npu/clamped_swiglu.py has one in torch's ops",
    ),
    Gap(
        op="npu::npu_moe_gating_top_k_softmax",
        what="it has no derivative",
        probe=_gating_softmax_backward,
        around="kernels/npu/router_topk.py takes its choice only and weighs by a softmax of torch",
    ),
)
