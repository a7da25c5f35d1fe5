"""Opening devices, and what the cpu's operations mean."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from ridgeline.core.errors import LoweringError, SpecError
from ridgeline.kernels.device import open_device


def test_the_cpu() -> None:
    """Every rank of a node shares the one cpu, over gloo."""
    device = open_device("cpu")
    assert device.capabilities.backend == "gloo"
    assert device.torch_device(0) == device.torch_device(3) == torch.device("cpu")
    device.set_device(1)
    device.synchronize()
    assert "torch_npu" not in sys.modules


def test_random_states_are_put_back() -> None:
    """The same state draws the same numbers, and so does the same seed."""
    device = open_device("cpu")
    device.seed(5)
    state = device.rng_state()
    drawn = torch.rand(4)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(4), drawn)
    device.seed(5)
    assert torch.equal(torch.rand(4), drawn)


def test_peak_memory_counts_what_was_held() -> None:
    """The peak is at least what was resident when 64 MiB more were held, and stays so after they are let go."""
    held = torch.ones(2**24)
    resident = psutil.Process().memory_info().rss
    del held
    slack = 2**20  # the kernel counts a process's pages in batches
    assert resident - slack <= open_device("cpu").peak_memory_bytes() < psutil.virtual_memory().total


def test_devices_that_are_not_there() -> None:
    """An unknown name is the user's mistake; a device this machine lacks cannot be lowered to."""
    with pytest.raises(SpecError, match=r"device='gpu': unknown; .*known: cpu, cuda, npu"):
        open_device("gpu")  # pyright: ignore[reportArgumentType]  the mistake under test
    if not torch.cuda.is_available():
        with pytest.raises(LoweringError, match=r"device='cuda': torch sees none on this machine; use device='cpu'"):
            open_device("cuda")
    with pytest.raises(LoweringError, match=r"device='npu': torch_npu is not installed"):
        open_device("npu")


def test_the_npu_with_a_stub() -> None:
    """On an npu Megatron-core's calls reach torch.npu, with the device as a torch.device; then all is taken back."""
    script = Path(__file__).with_name("npu_stub.py")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "current": "npu:3",
        "torch_device": "npu:1",
        "peak": 42,
        "backend": "hccl",
        "host_generator": True,
        "calls": ["set_device 1", "synchronize", "tensor.npu", "set_rng_state"],
        "restored": True,
    }
