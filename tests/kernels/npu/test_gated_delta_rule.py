"""The gated delta rule by flash-linear-attention, whose function a loop stands for here: it has no kernel for a CPU."""

import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.gated_delta_rule import gated_delta_rule
from ridgeline.kernels.reference import gated_delta_rule as reference

HALF = torch.bfloat16


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: None = None,
) -> tuple[Tensor, Tensor | None]:
    """The signature of fla-core 0.6.0 without its ``**kwargs``, and what its docstring says, token by token.

    Queries, keys (B, T, H, K), values (B, T, HV, V), gates in log space and betas (B, T, HV), states (B, HV, K, V).
    """
    assert not use_qk_l2norm_in_kernel | use_beta_sigmoid_in_kernel | allow_neg_eigval | state_v_first
    assert cu_seqlens is cu_seqlens_cpu is chunk_indices is cp_context is None
    assert q.dtype == k.dtype == v.dtype != torch.float32
    batch, length, heads, width = q.shape
    assert k.shape == q.shape
    assert v.shape[:3] == g.shape == beta.shape == (batch, length, heads)
    shape = (batch, heads, width, v.shape[-1])
    assert initial_state is None or initial_state.shape == shape
    assert scale is not None
    state = torch.zeros(shape, dtype=torch.float64) if initial_state is None else initial_state.double()
    outputs = []
    for step in range(length):
        key, query = k[:, step].double(), q[:, step].double() * scale
        state = state * g[:, step, :, None, None].double().exp()
        held = torch.einsum("nhkv,nhk->nhv", state, key)
        written = beta[:, step, :, None].double() * (v[:, step].double() - held)
        state = state + torch.einsum("nhk,nhv->nhkv", key, written)
        outputs.append(torch.einsum("nhkv,nhk->nhv", state, query))
    return torch.stack(outputs, 1).to(q.dtype), state.float() if output_final_state else None


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop, where fla-core keeps its function."""
    module: Any = ModuleType("fla.ops.gated_delta_rule")
    module.chunk_gated_delta_rule = chunk_gated_delta_rule
    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, module)


def inputs(*, state: bool) -> tuple[list[Tensor], dict[str, Any]]:
    """Two samples over more than one chunk, with values wider than keys."""
    torch.manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(2, 70, 3, 8), dim=-1).to(HALF).requires_grad_() for _ in "qk")
    v = torch.randn(2, 70, 3, 12).to(HALF).requires_grad_()
    decay, beta = (-torch.rand(2, 70, 3)).requires_grad_(), torch.rand(2, 70, 3).to(HALF).requires_grad_()
    first = torch.randn(2, 3, 8, 12).requires_grad_() if state else None
    options = {"log_decay_bsn": decay, "beta_bsn": beta, "scale": 0.3, "state_bnkv": first}
    return [q, k, v], options


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("state", [False, True])
def test_the_call_is_the_reference(state: bool) -> None:
    """By fla's signature, layouts and conventions, outputs, the last state and all gradients are the reference's."""
    results = []
    for rule in (gated_delta_rule, reference.gated_delta_rule):
        tensors, options = inputs(state=state)
        output, last = rule(*tensors, **options)
        assert (output.dtype, last.dtype) == (HALF, torch.float32)
        (output.float().square().sum() + last.square().sum()).backward()
        leaves = [x for x in (*tensors, *options.values()) if isinstance(x, Tensor)]
        results.append([output, last, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        # Both round their outputs to bf16, and so the gradients that start from them: eight bits.
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    ("shapes", "change", "message"),
    [
        ((8, 8), {"dtype": torch.float32}, "query_bsnk.dtype=torch.float32: not taken; use bfloat16 or float16"),
        ((258, 8), {}, "k=258: must be even and <= 256; use the kernel 'torch'"),
        ((8, 7), {}, "v=7: must be even and <= 256; use the kernel 'torch'"),
        ((8, 8), {"decay": HALF}, "log_decay_bsn.dtype=torch.bfloat16: not taken; use float32"),
    ],
)
def test_what_it_cannot_take(shapes: tuple[int, int], change: dict[str, torch.dtype], message: str) -> None:
    """A dtype or a size that fla's kernels cannot take is refused before the call, on any machine."""
    k, v = (torch.zeros(1, 4, 1, size, dtype=change.get("dtype", HALF)) for size in shapes)
    decay = torch.zeros(1, 4, 1, dtype=change.get("decay", torch.float32))
    with pytest.raises(LoweringError, match=f"^op='gated_delta_rule': {re.escape(message)}$"):
        gated_delta_rule(k, k, v, log_decay_bsn=decay, beta_bsn=decay, scale=1.0)
