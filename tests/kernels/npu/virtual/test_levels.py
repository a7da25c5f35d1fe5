"""The three levels of the virtual NPU, as their users meet them."""

from typing import Any

import pytest
import torch

from ridgeline.kernels.npu.virtual.emulate import emulated_npu, host_alias
from ridgeline.kernels.npu.virtual.fake import fake_npu
from ridgeline.kernels.npu.virtual.processes import RemoteError, VirtualProcess, call_ranks
from ridgeline.kernels.npu.virtual.single import npu_ops_on_cpu

on_virtual_npu = pytest.mark.usefixtures("virtual_npu")
npu: Any = torch.ops.npu


@on_virtual_npu
def test_fake_tensors_have_shapes_and_gradients() -> None:
    """A fused op and its backward run by torch_npu's own rules, with no memory behind the tensors."""
    with fake_npu():
        x = torch.empty(1 << 20, 1 << 20, device="npu", dtype=torch.bfloat16, requires_grad=True)
        gamma = torch.empty(1 << 20, device="npu", dtype=torch.bfloat16, requires_grad=True)
        y, rstd = npu.npu_rms_norm(x, gamma)
        y.sum().backward()
        assert (y.shape, y.dtype, y.device.type) == (x.shape, torch.bfloat16, "npu")
        assert (rstd.shape, rstd.dtype) == ((1 << 20, 1), torch.float32)
        assert x.grad is not None
        assert gamma.grad is not None
        assert gamma.grad.shape == gamma.shape


@on_virtual_npu
def test_fake_calls_are_checked() -> None:
    """A call that does not fit an op's schema fails."""
    with fake_npu():
        x = torch.empty(4, 8, device="npu")
        with pytest.raises(RuntimeError, match="scale"):
            npu.npu_rms_norm(x, x[0], scale=2.0)


@on_virtual_npu
@pytest.mark.parametrize("rank", [0, 4095])
def test_fake_worlds_have_any_size(rank: int) -> None:
    """One process is any rank of thousands: groups, and collectives with the shapes that they should have."""
    with fake_npu(rank=rank, world_size=4096):
        distributed = torch.distributed
        assert (distributed.get_rank(), distributed.get_world_size()) == (rank, 4096)
        x, gathered = torch.empty(2, 8, device="npu"), torch.empty(2 * 4096, 8, device="npu")
        distributed.all_gather_into_tensor(gathered, x)
        distributed.all_reduce(x, group=distributed.new_group(range(0, 4096, 2)))
    assert not distributed.is_initialized()


@on_virtual_npu
def test_emulated_training_equals_the_cpu() -> None:
    """Three AdamW steps of a small network on the emulated npu give the weights that the CPU gives, bit for bit."""

    def trained(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.SiLU())
        model = torch.nn.Sequential(torch.nn.Embedding(10, 8), *layers, torch.nn.Linear(16, 10)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
        tokens = torch.arange(10).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(tokens), tokens).backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    expected = trained("cpu")
    with emulated_npu():
        got = trained("npu")
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs)


@on_virtual_npu
def test_emulated_memory_is_torch_npus() -> None:
    """An alias shares the npu tensor's memory, views and strides included, and the allocator counts it."""
    with emulated_npu():
        before = torch.npu.memory_allocated()  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
        x = torch.zeros(64, 32, device="npu")
        host_alias(x[1::2].t())[3, 5] = 7.0
        assert x[11, 3].item() == 7.0
        grown = torch.npu.memory_allocated() - before  # pyright: ignore[reportAttributeAccessIssue]  as above
        assert 64 * 32 * 4 <= grown <= 64 * 32 * 4 + 512  # blocks of 512 bytes, with room for a kernel's overrun
        x.untyped_storage().resize_(0)
        assert x.untyped_storage().nbytes() == 0


@on_virtual_npu
def test_emulated_ops_are_known_or_refused() -> None:
    """Ops that ran are recorded; one without an emulation is an error, never a silent nothing."""
    executed: set[str] = set()
    with emulated_npu(executed=executed):
        npu.npu_swiglu(torch.zeros(2, 8, device="npu"))
        with pytest.raises(NotImplementedError, match=r"op='npu::npu_mish': has no emulation; known: .*npu_swiglu"):
            npu.npu_mish(torch.zeros(2, 8, device="npu"))
    assert executed == {"npu::npu_swiglu"}


@on_virtual_npu
def test_single_ops_take_cpu_tensors() -> None:
    """Inside the context an npu op computes on CPU tensors, with a gradient; outside it does not exist there."""
    x = torch.randn(4, 8, requires_grad=True)
    with npu_ops_on_cpu():
        y = npu.npu_swiglu(x)
        y.sum().backward()
    gate, up = x.detach().chunk(2, -1)
    torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up)
    assert x.grad is not None
    with pytest.raises(NotImplementedError, match="npu_swiglu"):
        npu.npu_swiglu(x)


def sums_over_ranks(bias: float) -> dict[str, list[float]]:
    """On a rank: what every collective gives on the emulated npu."""
    distributed = torch.distributed
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    with emulated_npu():
        x = torch.full((2,), rank + bias, device="npu")
        work = distributed.all_reduce(total := x.clone(), async_op=True)
        assert work is not None
        work.wait()
        distributed.all_gather_into_tensor(gathered := torch.empty(2 * world_size, device="npu"), x)
        distributed.reduce_scatter_tensor(part := torch.empty(2, device="npu"), gathered)
        distributed.all_to_all_single(exchanged := torch.empty(2, device="npu"), x)
        results = {"total": total, "gathered": gathered, "part": part, "exchanged": exchanged}
        return {name: result.cpu().tolist() for name, result in results.items()}


def test_emulated_ranks_exchange_numbers(virtual_ranks: list[VirtualProcess], tmp_path: Any) -> None:
    """Collectives over emulated npu tensors give what their names say, on two gloo ranks."""
    function = f"{sums_over_ranks.__module__}:sums_over_ranks"
    results = call_ranks(virtual_ranks, function, 1.0, store=tmp_path / "store", file=__file__)
    for rank, result in enumerate(results):
        assert result["total"] == [3.0, 3.0]
        assert result["gathered"] == [1.0, 1.0, 2.0, 2.0]
        assert result["part"] == [2.0 * (rank + 1)] * 2
        assert result["exchanged"] == [1.0, 2.0]


def test_a_failure_is_told(virtual_ranks: list[VirtualProcess]) -> None:
    """What a process raised comes back as its traceback, and the process lives on."""
    with pytest.raises(RemoteError, match=r"ZeroDivisionError: integer division"):
        virtual_ranks[0].call("operator:floordiv", 1, 0)
    assert virtual_ranks[0].call("operator:add", 1, 2) == 3
