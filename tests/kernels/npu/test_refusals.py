"""What kernels on torch_npu cannot take is refused before the call, by an error of ours, on any machine."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import zeros

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.masks import CAUSAL
from ridgeline.kernels.npu.adamw import adamw
from ridgeline.kernels.npu.add_rms_norm import add_rms_norm
from ridgeline.kernels.npu.attention import attention
from ridgeline.kernels.npu.bounded_swiglu import bounded_swiglu
from ridgeline.kernels.npu.clamped_swiglu import clamped_swiglu
from ridgeline.kernels.npu.cross_entropy import cross_entropy
from ridgeline.kernels.npu.geglu import geglu
from ridgeline.kernels.npu.grouped_matmul import grouped_matmul
from ridgeline.kernels.npu.lightning_indexer import lightning_indexer
from ridgeline.kernels.npu.masked_softmax import masked_softmax
from ridgeline.kernels.npu.matmul_add import matmul_add
from ridgeline.kernels.npu.partial_attention import partial_attention, partial_attention_grad
from ridgeline.kernels.npu.permute import permute, permute_by_map, unpermute, unpermute_by_map
from ridgeline.kernels.npu.rms_norm import rms_norm
from ridgeline.kernels.npu.rope import rope
from ridgeline.kernels.npu.router_topk import router_topk
from ridgeline.kernels.npu.sparse_attention import sparse_attention
from ridgeline.kernels.npu.swiglu import swiglu
from ridgeline.kernels.table import KERNELS

WIDE, HALF = torch.float64, torch.bfloat16
COUNTS = torch.tensor([1, 1])


def table(width: int) -> torch.Tensor:
    return zeros(2, 1, 1, width)


def half(*shape: int) -> torch.Tensor:
    return zeros(*shape, dtype=HALF)


REFUSED: dict[str, Callable[[], Any]] = {
    "op='rms_norm': x.dtype=torch.float64: not taken; use bfloat16, float16 or float32": lambda: rms_norm(
        zeros(2, 4, dtype=WIDE), zeros(4, dtype=WIDE), eps=1e-5
    ),
    "op='rms_norm': weight_h.dtype=torch.float32: must be that of x, torch.bfloat16": lambda: rms_norm(
        half(2, 4), zeros(4), eps=1e-5
    ),
    "op='rms_norm': x.dim()=1: must be 2 .. 8; reshape x": lambda: rms_norm(zeros(4), zeros(4), eps=1e-5),
    "op='swiglu': gate_up.shape[-1]=5: must be even: a gate and an up half": lambda: swiglu(zeros(2, 5)),
    "op='geglu': gate_up.shape[-1]=5: must be even: a gate and an up half": lambda: geglu(
        zeros(2, 5), approximate=True
    ),
    "op='bounded_swiglu': gate_up.shape[-1]=3: must be even: a gate and an up half": lambda: bounded_swiglu(
        zeros(2, 3), limit=1.0
    ),
    "op='clamped_swiglu': gate_up.dim()=1: must be 2 or more; unsqueeze": lambda: clamped_swiglu(zeros(4)),
    "op='rope': cos_sb1d.shape[-1]=896: must be even and <= 894": lambda: rope(
        zeros(2, 1, 1, 896), table(896), table(896)
    ),
    "op='rope': b*n=1000: must be <= 999 if interleaved; use the half layout": lambda: rope(
        zeros(2, 10, 100, 4), table(4), table(4), interleaved=True
    ),
    "op='masked_softmax': t=48: must be a multiple of 32, 32 .. 4096; use flash attention": lambda: masked_softmax(
        zeros(1, 1, 32, 48), zeros(1, dtype=torch.bool), scale=1.0
    ),
    "op='grouped_matmul': n=65536: must be <= 65535; split it over etp": lambda: grouped_matmul(
        zeros(2, 1), [zeros(65536, 1)] * 2, COUNTS
    ),
    "op='grouped_matmul': counts_e.dtype=torch.int32: not taken; use int64": lambda: grouped_matmul(
        zeros(2, 1), [zeros(1, 1)] * 2, COUNTS.int()
    ),
    "op='grouped_matmul': groups=129: must be 2 .. 128; use the kernel 'torch'": lambda: grouped_matmul(
        zeros(2, 1), [zeros(1, 1)] * 129, COUNTS
    ),
    "op='matmul_add': x_mk.dtype=torch.bfloat16: must be that of dy_mn, torch.float32": lambda: matmul_add(
        zeros(2, 2), zeros(3, 2), half(3, 2)
    ),
    "op='permute': topk=513: must be <= 512": lambda: permute(zeros(1, 2), torch.arange(513)[None]),
    "op='unpermute': topk=513: must be <= 512": lambda: unpermute(
        zeros(513, 2), torch.arange(513).int(), zeros(1, 513)
    ),
    "op='router_topk': experts=2049: must be <= 2048": lambda: router_topk(zeros(1, 2049), topk=1, renormalise=True),
    "op='router_topk': scoring='softmax': takes no bias and no groups here; use sigmoid": lambda: router_topk(
        zeros(1, 8), topk=1, renormalise=True, groups=2, groups_kept=1
    ),
    "op='router_topk': renormalise=False: must be True for sigmoid scores": lambda: router_topk(
        zeros(1, 8), topk=1, renormalise=False, scoring="sigmoid"
    ),
    "op='router_topk': groups=4: must leave a group more than two of 8 experts": lambda: router_topk(
        zeros(1, 8), topk=1, renormalise=True, scoring="sigmoid", groups=4, groups_kept=1
    ),
    "op='cross_entropy': targets_t.dtype=torch.int32: not taken; use int64": lambda: cross_entropy(
        zeros(2, 3), zeros(2, dtype=torch.int32)
    ),
    "op='cross_entropy': tokens=200001: must be <= 200000; use linear_cross_entropy, by chunks": lambda: cross_entropy(
        zeros(200_001, 1), zeros(200_001, dtype=torch.int64)
    ),
    "op='adamw': param.dtype=torch.bfloat16: not taken; use float32": lambda: adamw(
        half(2), half(2), half(2), half(2), step=1, lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0
    ),
    "op='lightning_indexer': head_dim=64: must be 128": lambda: lightning_indexer(
        half(1, 2, 1, 64), half(1, 2, 64), half(1, 2, 1), topk=1
    ),
    "op='lightning_indexer': topk=2049: must be 1 .. 2048, or a multiple of 1024 to 8192": lambda: lightning_indexer(
        half(1, 2, 1, 128), half(1, 2, 128), half(1, 2, 1), topk=2049
    ),
    "op='sparse_attention': (l, r)=(256, 64): must be (512, 64)": lambda: sparse_attention(
        half(1, 2, 1, 256),
        half(1, 2, 256),
        zeros(1, 2, 1, dtype=torch.int64),
        query_rope_bsnr=half(1, 2, 1, 64),
        key_rope_btr=half(1, 2, 64),
        scale=1.0,
    ),
    "op='rms_norm': weight_h.shape=(5,): must be (4,)": lambda: rms_norm(zeros(2, 4), zeros(5), eps=1e-5),
    "op='add_rms_norm': residual.dtype=torch.bfloat16: must be that of x, torch.float32": lambda: add_rms_norm(
        zeros(2, 4), half(2, 4), zeros(4), eps=1e-5
    ),
    "op='add_rms_norm': residual.shape=(1, 4): must be (2, 4)": lambda: add_rms_norm(
        zeros(2, 4), zeros(1, 4), zeros(4), eps=1e-5
    ),
    "op='swiglu': gate_up.dtype=torch.float64: not taken; use bfloat16, float16 or float32": lambda: swiglu(
        zeros(2, 4, dtype=WIDE)
    ),
    "op='geglu': gate_up.dtype=torch.float64: not taken; use bfloat16, float16 or float32": lambda: geglu(
        zeros(2, 4, dtype=WIDE), approximate=True
    ),
    "op='clamped_swiglu': gate_up.dtype=torch.float64: not taken; use bfloat16, float16 or float32": lambda: (
        clamped_swiglu(zeros(2, 4, dtype=WIDE))
    ),
    "op='rope': cos_sb1d.dtype=torch.float32: must be that of x_sbnd, torch.bfloat16": lambda: rope(
        half(2, 1, 1, 4), table(4), table(4)
    ),
    "op='rope': cos_sb1d.shape[-1]=6: must be <= 4": lambda: rope(zeros(2, 1, 1, 4), table(6), table(6)),
    "op='rope': cos_sb1d.shape=(2, 1, 1, 4): must be (3, 1, 1, 4)": lambda: rope(zeros(3, 1, 1, 4), table(4), table(4)),
    "op='masked_softmax': hidden.dtype=torch.float32: not taken; use bool": lambda: masked_softmax(
        zeros(1, 1, 32, 32), zeros(1), scale=1.0
    ),
    "op='grouped_matmul': weight_nk.dtype=torch.bfloat16: must be that of x_mk, torch.float32": lambda: grouped_matmul(
        zeros(2, 1), [half(1, 1)] * 2, COUNTS
    ),
    "op='grouped_matmul': counts_e.shape=(2,): must be (3,)": lambda: grouped_matmul(
        zeros(2, 1), [zeros(1, 1)] * 3, COUNTS
    ),
    "op='grouped_matmul': x_mk.shape=(2, 3): must be (2, 1)": lambda: grouped_matmul(
        zeros(2, 3), [zeros(1, 1)] * 2, COUNTS
    ),
    "op='grouped_matmul': grad_sum_enk.shape=(2, 1, 2): must be (2, 1, 1)": lambda: grouped_matmul(
        zeros(2, 1), [zeros(1, 1)] * 2, COUNTS, grad_sum_enk=zeros(2, 1, 2)
    ),
    "op='matmul_add': grad_sum_nk.shape=(2, 3): must be (2, 4)": lambda: matmul_add(
        zeros(2, 3), zeros(3, 2), zeros(3, 4)
    ),
    "op='permute': experts_tk.dtype=torch.float32: not taken; use int32 or int64": lambda: permute(
        zeros(1, 2), zeros(1, 2)
    ),
    "op='permute': experts_tk.shape=(3, 2): must be (1, 2)": lambda: permute(
        zeros(1, 2), zeros(3, 2, dtype=torch.int64)
    ),
    "op='unpermute': places_m.dtype=torch.int64: not taken; use int32": lambda: unpermute(
        zeros(2, 2), torch.arange(2), zeros(1, 2)
    ),
    "op='unpermute': rows_mh.shape=(3, 2): must be (2, 2)": lambda: unpermute(
        zeros(3, 2), torch.arange(2).int(), zeros(1, 2)
    ),
    "op='permute_by_map': map_te.dtype=torch.int64: not taken; use bool": lambda: permute_by_map(
        zeros(2, 2), zeros(2, 4, dtype=torch.int64), zeros(2, 4), topk=1
    ),
    "op='permute_by_map': weights_te.shape=(2, 3): must be (2, 4)": lambda: permute_by_map(
        zeros(2, 2), zeros(2, 4, dtype=torch.bool), zeros(2, 3), topk=1
    ),
    "op='unpermute_by_map': map_te.dtype=torch.float32: not taken; use bool": lambda: unpermute_by_map(
        zeros(2, 2), torch.arange(2).int(), zeros(2, 4)
    ),
    "op='unpermute_by_map': m=3: must be a multiple of the tokens, the rows of each": lambda: unpermute_by_map(
        zeros(3, 2), torch.arange(3).int(), zeros(2, 4, dtype=torch.bool)
    ),
    "op='router_topk': bias_e.dtype=torch.bfloat16: must be that of logits_te, torch.float32": lambda: router_topk(
        zeros(1, 8), topk=1, renormalise=True, scoring="sigmoid", bias_e=half(8)
    ),
    "op='router_topk': topk=9: must be <= 8": lambda: router_topk(zeros(1, 8), topk=9, renormalise=True),
    "op='cross_entropy': targets_t.shape=(3,): must be (2,)": lambda: cross_entropy(
        zeros(2, 3), zeros(3, dtype=torch.int64)
    ),
    "op='adamw': square.shape=(3,): must be (2,)": lambda: adamw(
        zeros(2), zeros(2), zeros(2), zeros(3), step=1, lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0
    ),
    "op='lightning_indexer': query_bsnd.dtype=torch.float32: not taken; use bfloat16 or float16": lambda: (
        lightning_indexer(zeros(1, 2, 1, 128), zeros(1, 2, 128), zeros(1, 2, 1), topk=1)
    ),
    "op='lightning_indexer': weights_bsn.shape=(1, 2, 3): must be (1, 2, 1)": lambda: lightning_indexer(
        half(1, 2, 1, 128), half(1, 2, 128), half(1, 2, 3), topk=1
    ),
    "op='sparse_attention': indices_bsk.dtype=torch.float32: not taken; use int32 or int64": lambda: sparse_attention(
        half(1, 2, 1, 512),
        half(1, 2, 512),
        zeros(1, 2, 1),
        query_rope_bsnr=half(1, 2, 1, 64),
        key_rope_btr=half(1, 2, 64),
        scale=1.0,
    ),
    "op='partial_attention': value_head_dim=16: must be <= head_dim=8; pad queries and keys": lambda: partial_attention(
        zeros(4, 1, 2, 8), zeros(4, 1, 2, 8), zeros(4, 1, 2, 16), scale=1.0, mask=CAUSAL
    ),
    "op='partial_attention_grad': query.dtype=torch.float64: not taken; use bfloat16, float16 or float32": lambda: (
        partial_attention_grad(*[zeros(4, 1, 2, 8, dtype=WIDE)] * 5, zeros(1, 2, 4), scale=1.0, mask=CAUSAL)
    ),
    "op='attention': t=5: must be s=4 where documents are packed": lambda: attention(
        zeros(4, 1, 2, 8), zeros(5, 1, 2, 8), zeros(5, 1, 2, 8), scale=1.0, cu_seqlens=torch.tensor([0, 4])
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_they_cannot_take(message: str) -> None:
    """The error names the op, the value and what would work."""
    with pytest.raises(LoweringError, match=f"^{re.escape(message)}$"):
        REFUSED[message]()


ELSEWHERE = {"flash_attention", "gated_delta_rule", "gather_matmul", "matmul_scatter", "matmul_reduce"}
"""Ops with a file of tests of their own."""


def test_every_kernel_refuses_something() -> None:
    """Of every op that has a kernel for an npu a wrong dtype is tried, or a wrong shape, or both."""
    ops = {kernel.op for kernels in KERNELS.values() for kernel in kernels if kernel.devices == ("npu",)}
    tried = {re.match(r"op='(\w+)'", message)[1] for message in REFUSED}  # pyright: ignore[reportOptionalSubscript]
    assert tried | ELSEWHERE == ops
