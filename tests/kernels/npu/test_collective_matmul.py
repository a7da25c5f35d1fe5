"""Fused projections and collectives on two emulated ranks, beside one rank that does it all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual.emulate import emulated_npu
from ridgeline.kernels.npu.virtual.processes import VirtualProcess, call_ranks
from ridgeline.kernels.runtime.load import load_kernel
from ridgeline.kernels.table import KERNELS
from tests.kernels.npu.test_kernels import ON_RANKS, calls, sources

Numbers = dict[str, list[list[float]]]


def inputs(rank: int, world_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A rank's rows, its weight, and a gradient for as many rows as any op gives, in sizes that the kernels take."""
    generator = torch.Generator().manual_seed(rank)
    x, weight = torch.randn(8, 256, generator=generator), torch.randn(260, 256, generator=generator) / 16
    return x, weight, torch.randn(8 * world_size, 260, generator=generator)


def on_rank(op: str, kernel: str, slices: int) -> tuple[Numbers, set[str]]:
    """On a rank: the output and the gradients of an op, and which ops of torch_npu ran."""
    executed: set[str] = set()
    group = distributed.group.WORLD
    assert group is not None
    with emulated_npu(executed=executed):
        x, weight, dy = (t.to("npu").requires_grad_() for t in inputs(distributed.get_rank(), group.size()))
        out = load_kernel(op, kernel)(x, weight, group=group, slices=slices)
        out.backward(dy[: len(out)].detach())
        assert x.grad is not None
        assert weight.grad is not None
        found = {"out": out.detach(), "dx": x.grad, "dweight": weight.grad}
        return {name: tensor.cpu().tolist() for name, tensor in found.items()}, executed


def on_one(op: str, world_size: int) -> list[dict[str, Tensor | None]]:
    """What each rank must get, by torch's autograd over all of them in one process, in float64."""
    each = [[t.double().requires_grad_() for t in inputs(rank, world_size)] for rank in range(world_size)]
    whole = torch.cat([x for x, _, _ in each])
    total = torch.stack([x @ weight.t() for x, weight, _ in each]).sum(0)
    outs = {
        "gather_matmul": lambda rank: whole @ each[rank][1].t(),
        "matmul_scatter": lambda rank: total.chunk(world_size)[rank],
        "matmul_reduce": lambda rank: total,
    }
    made = [outs[op](rank) for rank in range(world_size)]
    # Without sp all ranks go on with the same activations, so that one's gradient is everyone's.
    counted = made[:1] if op == "matmul_reduce" else made
    gradients = [dy[: len(out)].detach() for out, (_, _, dy) in zip(counted, each, strict=False)]
    torch.autograd.backward(counted, gradients)
    return [{"out": out.detach(), "dx": x.grad, "dweight": w.grad} for out, (x, w, _) in zip(made, each, strict=True)]


@pytest.mark.parametrize(("which", "slices"), [("npu", 1), ("torch", 1), ("torch", 2)])
@pytest.mark.parametrize("op", sorted(ON_RANKS))
def test_ranks_together_do_what_one_does(
    op: str, which: str, slices: int, virtual_ranks: list[VirtualProcess], tmp_path: Path
) -> None:
    """Output and gradients on every rank, of the fused kernel, of plain torch, and of plain torch in slices."""
    kernel = KERNELS[op][0].name if which == "npu" else "torch"
    function = f"{on_rank.__module__}:on_rank"
    world_size = len(virtual_ranks)
    results = call_ranks(virtual_ranks, function, op, kernel, slices, store=tmp_path / "store", file=__file__)
    expected = on_one(op, world_size)
    if op == "matmul_reduce":  # every rank was given a gradient of its own; rank 0's is the one that counts
        results = results[:1]
    for (numbers, executed), rank in zip(results, expected, strict=False):
        assert (f"npu::{kernel}" in executed) == (which == "npu")
        for name, values in numbers.items():
            # Sums of 256 to 520 products in fp32.
            torch.testing.assert_close(torch.tensor(values).double(), rank[name], rtol=1e-4, atol=1e-4)


def test_every_call_runs(virtual_ranks: list[VirtualProcess], tmp_path: Path) -> None:
    """Each op of torch_npu in the file is executed by some op."""
    (path,) = (path for path in sources() if path.stem == "collective_matmul")
    executed: set[str] = set()
    for op in ON_RANKS:
        arguments = (op, KERNELS[op][0].name, 1)
        store = tmp_path / op
        for _, ran in call_ranks(virtual_ranks, f"{__name__}:on_rank", *arguments, store=store, file=__file__):
            executed |= ran
    assert calls(path) <= executed


def refusal(op: str, in_features: int) -> str:
    """On a rank: how an op refuses a size."""
    group = distributed.group.WORLD
    try:
        load_kernel(op, KERNELS[op][0].name)(torch.zeros(4, in_features), torch.zeros(300, in_features), group=group)
    except LoweringError as error:
        return str(error)
    return ""


def test_what_it_cannot_take(virtual_ranks: list[VirtualProcess], tmp_path: Path) -> None:
    """Sizes outside the kernel's, and one rank, are refused before the call."""
    function = f"{__name__}:refusal"
    told = call_ranks(virtual_ranks, function, "gather_matmul", 255, store=tmp_path / "a", file=__file__)
    rule = "each dim that a product sums over must be 256 .. 65534; use the kernel 'torch'"
    assert told == [f"op='gather_matmul': weight_nk.shape=(300, 255): {rule}"] * 2
    told = call_ranks(virtual_ranks[:1], function, "gather_matmul", 256, store=tmp_path / "b", file=__file__)
    assert told == ["op='gather_matmul': group.size()=1: must be 2, 4 or 8"]
