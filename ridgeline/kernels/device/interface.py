"""The one interface through which a trainer speaks to its device."""

import importlib.util
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.capabilities import Capabilities, DeviceName, capabilities_of


class Device(Protocol):
    """A kind of device on this machine.

    Attributes:
        capabilities: What it can do, as data.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def torch_device(self, local_rank: int) -> torch.device:
        """The torch device of a rank, 0 <= local_rank < ranks on this node."""
        ...

    def set_device(self, local_rank: int) -> None:
        """Make the rank's device the one that index-less calls use."""
        ...

    def synchronize(self) -> None:
        """Wait until everything queued on the current device is done."""
        ...

    def peak_memory_bytes(self) -> int:
        """Most memory held at once since the process began.

        Tensors of this process on the device; where the device does not count (``capabilities.counts_memory``),
        the whole process's resident memory.
        """
        ...

    def seed(self, seed: int) -> None:
        """Seed the generator that dropout and initialisation on the device draw from."""
        ...

    def rng_state(self) -> torch.Tensor:
        """A copy of that generator's state: uint8, one dim."""
        ...

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Put a state of `rng_state` back."""
        ...

    def deterministic(self, seed: int) -> AbstractContextManager[None]:
        """A context in which two runs give equal bits; enter it before process groups are made."""
        ...

    def bridge(self) -> AbstractContextManager[None]:
        """A context inside which Megatron-core runs on this device.

        Build, train, save and load inside it. What it assigns in Megatron-core it takes back on leaving, in any way.
        Contexts nest; entering is cheap after the first time, which imports Megatron-core.
        """
        ...


def open_device(name: DeviceName) -> Device:
    """Open a kind of device on this machine.

    Raises:
        SpecError: No such device exists.
        LoweringError: This machine cannot run it.
    """
    capabilities = capabilities_of(name)
    if name == "cpu":
        from ridgeline.kernels.device.cpu import Cpu

        return Cpu(capabilities=capabilities)

    from ridgeline.kernels.device.accelerator import Accelerator

    if name == "npu" and importlib.util.find_spec("torch_npu") is None:
        raise LoweringError(
            "device='npu': torch_npu is not installed; pip install 'ridgeline[npu]', or use device='cpu'"
        )
    module = importlib.import_module("torch_npu").npu if name == "npu" else torch.cuda
    if not module.is_available():
        raise LoweringError(f"device={name!r}: torch sees none on this machine; use device='cpu'")
    return Accelerator(capabilities=capabilities, module=module)
