"""What makes two runs of a job give equal bits, set on entering and taken back on leaving."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType

import torch

from ridgeline.kernels.capabilities import DeviceName

VARIABLES: Mapping[DeviceName, Mapping[str, str]] = MappingProxyType(
    {
        "cpu": MappingProxyType({}),
        # HCCL adds in one order; matrix products do not shift how they split their inner dimension.
        "npu": MappingProxyType({"HCCL_DETERMINISTIC": "true", "CLOSE_MATMUL_K_SHIFT": "1"}),
        "cuda": MappingProxyType({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}),
    }
)
"""Of the environment, which libraries read when they begin: enter before process groups are made."""


@contextmanager
def deterministic(device: DeviceName, *, seed: int) -> Iterator[None]:
    """Deterministic algorithms, on this device and in its collectives, and every generator at one seed.

    torch_npu passes torch's switch on to CANN (``ACL_OPT_DETERMINISTIC``), where it holds for ops that have a
    deterministic form; those that have none are passed over when kernels are chosen (`Kernel.deterministic`).

    Args:
        device: Where the run computes.
        seed: Of the host's and the device's generators, and of the hashes of processes started inside.

    Source:
        MindSpeed, ``--npu-deterministic``; pytorch.org, Reproducibility.
    """
    variables = {**VARIABLES[device], "PYTHONHASHSEED": str(seed)}
    before = {name: os.environ.get(name) for name in variables}
    algorithms, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.update(variables)
    torch.use_deterministic_algorithms(True)
    try:
        with _generators(device):
            torch.manual_seed(seed)  # every device's too
            yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=only_warns)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _generators(device: DeviceName) -> AbstractContextManager[None]:
    """Generators that continue where they stood, once the context ends."""
    if device == "cpu":
        return torch.random.fork_rng(devices=())
    return torch.random.fork_rng(devices=(getattr(torch, device).current_device(),), device_type=device)
