"""Run as a script: enter the npu's bridge with a stub in place of torch_npu, and say what Megatron-core sees."""

import json
import sys
import types
from typing import Any


def stub(calls: list[str]) -> Any:
    """A torch_npu that notes what is called."""
    import torch

    npu: Any = types.ModuleType("torch_npu.npu")
    npu.__dict__.update(
        is_available=lambda: True,
        current_device=lambda: 3,
        set_device=lambda index: calls.append(f"set_device {index}"),
        synchronize=lambda: calls.append("synchronize"),
        get_rng_state=lambda: torch.zeros(1),
        set_rng_state=lambda state: calls.append("set_rng_state"),
        max_memory_allocated=lambda: 42,
        FloatTensor=torch.FloatTensor,
        HalfTensor=torch.HalfTensor,
        BFloat16Tensor=torch.BFloat16Tensor,
    )
    torch_npu: Any = types.ModuleType("torch_npu")
    torch_npu.npu = npu
    torch_npu.__spec__ = types.SimpleNamespace(name="torch_npu")
    return torch_npu


def main() -> None:
    import torch

    calls: list[str] = []
    sys.modules["torch_npu"] = stub(calls)
    torch.utils.rename_privateuse1_backend("npu")
    vars_of: Any = torch.Tensor
    vars_of.npu = lambda tensor: calls.append("tensor.npu") or tensor
    vars_of = torch.nn.Module
    vars_of.npu = lambda module: module

    from ridgeline.kernels.device import open_device

    device = open_device("npu")
    device.set_device(1)
    with device.bridge():
        from megatron.core import utils
        from megatron.core.tensor_parallel import random

        redirected: Any = utils.torch
        redirected.cuda.synchronize()
        torch.zeros(1).cuda()
        random._set_cuda_rng_state(torch.zeros(1))
        seen = {
            "current": str(redirected.cuda.current_device()),
            "torch_device": str(device.torch_device(1)),
            "peak": device.peak_memory_bytes(),
            "backend": device.capabilities.backend,
            "host_generator": random.torch.get_rng_state().numel() > 1,
        }
    print(json.dumps({**seen, "calls": calls, "restored": utils.torch is torch}))


if __name__ == "__main__":
    main()
