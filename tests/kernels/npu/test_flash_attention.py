"""Flash attention on torch_npu over drawn shapes, layouts, masks and lengths, and what it refuses."""

import re
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.masks import CAUSAL, FULL, Band, Prefix, window
from ridgeline.kernels.npu.flash_attention import flash_attention
from ridgeline.kernels.npu.virtual.emulate import emulated_npu
from tests.kernels.npu.cases import Case
from tests.kernels.npu.running import everything, moved
from tests.kernels.reference.attention_cases import Call, calls


@pytest.mark.usefixtures("virtual_npu")
@settings(max_examples=60)
@given(calls(softcap=False))
def test_it_is_the_reference(call: Call) -> None:
    """Outputs and all gradients equal plain torch's, whatever the layout, mask, lengths, groups, sinks and slopes."""
    case = Case(op="flash_attention", kernel="npu_fusion_attention", args=call.tensors, kwargs=call.options)
    arguments = (case.args(), case.kwargs())
    expected = everything(case, "torch", moved(arguments, lambda x: x))
    with emulated_npu():
        got = [x.detach().cpu() for x in everything(case, case.kernel, moved(arguments, lambda x: x.to("npu")))]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=5e-5, atol=5e-5)  # fp32 against fp32 of float64


@pytest.mark.usefixtures("virtual_npu")
def test_dropout_drops_and_scales() -> None:
    """With values of one, each output is the kept share of its weights over that share's mean; seeds repeat it."""
    with emulated_npu():
        query, key = (torch.randn(1, 2, 64, 8).to("npu").requires_grad_() for _ in range(2))
        value = torch.ones(1, 2, 64, 8).to("npu").requires_grad_()

        def out(dropout: float) -> Any:
            torch.manual_seed(0)
            options: dict[str, Any] = {"layout": "BNSD", "heads": 2, "scale": 0.1, "mask": FULL}
            return flash_attention(query, key, value, dropout=dropout, **options)

        dropped = out(0.25)
        assert torch.equal(dropped.cpu(), out(0.25).cpu())
        assert not torch.equal(dropped.cpu(), out(0.0).cpu())
        assert abs(dropped.mean().item() - 1) < 0.02  # 128 rows of 64 nearly equal weights: 0.006 apart
        dropped.sum().backward()
        assert value.grad is not None
        assert query.grad is not None
        # The gradient drops the very weights that the forward dropped.
        torch.testing.assert_close(value.grad.sum().cpu(), dropped.sum().detach().cpu(), rtol=1e-5, atol=0)


@attrs.frozen
class Refused:
    """Options that change a good call into a bad one, and what is said."""

    message: str
    options: dict[str, Any] = attrs.field(factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((1, 2, 4, 8),) * 3
    dtypes: tuple[torch.dtype, ...] = (torch.float32,) * 3


REFUSED = [
    Refused("layout='NBSD': use SBH, BSH, BSND, BNSD or TND", {"layout": "NBSD"}),
    Refused("key.dim()=3: must be 4 in layout BNSD", shapes=((1, 2, 4, 8), (1, 4, 16), (1, 2, 4, 8))),
    Refused("mask.dtype=torch.float32: not taken; use bool", {"mask": torch.zeros(4, 4)}),
    Refused("mask.shape=(4, 5): must end in (4, 4)", {"mask": torch.zeros(4, 5, dtype=torch.bool)}),
    Refused("heads=512: must be <= 256; raise tp", {"heads": 512}),
    Refused("head_dim=776: must be <= 768", shapes=((1, 2, 4, 776),) * 3),
    Refused(
        "value_head_dim=16: must be <= head_dim=8; pad queries and keys", shapes=(*((1, 2, 4, 8),) * 2, (1, 2, 4, 16))
    ),
    Refused("softcap=30.0: no npu kernel has it; use the kernel 'torch'", {"softcap": 30.0}),
    Refused("layout='TND': lengths belong to TND, and to TND alone", {"layout": "TND"}, ((4, 2, 8),) * 3),
    Refused("layout='BNSD': lengths belong to TND, and to TND alone", {"q_lengths": [4], "kv_lengths": [4]}),
    Refused(
        "mask=Prefix(lengths=(1,)): TND takes bands only; use another layout",
        {"layout": "TND", "q_lengths": [4], "kv_lengths": [4], "mask": Prefix((1,))},
        ((4, 2, 8),) * 3,
    ),
    Refused("mask.lengths=33: must be <= 32; lower mbs", {"mask": Prefix((1,) * 33)}, ((33, 2, 4, 8),) * 3),
    Refused(
        "alibi_n='given': needs as many queries as keys; use the kernel 'torch'",
        {"alibi_n": torch.ones(2)},
        ((1, 2, 3, 8), *((1, 2, 4, 8),) * 2),
    ),
    Refused("query.dtype=torch.float64: not taken; use bfloat16, float16 or float32", dtypes=(torch.float64,) * 3),
    Refused(
        "key.dtype=torch.bfloat16: must be that of query, torch.float32",
        dtypes=(torch.float32, torch.bfloat16, torch.float32),
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.message.split(":")[0])
def test_what_it_cannot_take(case: Refused) -> None:
    """A shape, dtype, layout or mask that the kernel cannot take is refused before the call, on any machine."""
    tensors = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(case.shapes, case.dtypes, strict=True)]
    options: dict[str, Any] = {"layout": "BNSD", "heads": 2, "scale": 1.0, "mask": CAUSAL, **case.options}
    with pytest.raises(LoweringError, match=f"^{re.escape(f'op={chr(39)}flash_attention{chr(39)}: {case.message}')}$"):
        flash_attention(*tensors, **options)


def test_masks_as_bands() -> None:
    """A window of n positions is a band of n - 1 before the query and none after it."""
    assert window(4) == Band(3, 0)
    assert [key for key in range(10) if window(4).sees(query=6, key=key)] == [3, 4, 5, 6]
    assert all(FULL.sees(query=query, key=key) for query in range(3) for key in range(3))
