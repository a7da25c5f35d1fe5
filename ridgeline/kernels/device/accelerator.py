"""An npu or a cuda card as a device, through the torch module that drives it."""

from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace

import attrs
import torch

from ridgeline.kernels.capabilities import Capabilities
from ridgeline.kernels.device.bridge import Redirection, bridge
from ridgeline.kernels.device.determinism import deterministic


@attrs.frozen(kw_only=True)
class Accelerator:
    """Implements `Device` on cards.

    Attributes:
        module: ``torch.cuda`` or ``torch.npu``; torch_npu gives its module the names of torch's own.
    """

    capabilities: Capabilities
    module: ModuleType

    def torch_device(self, local_rank: int) -> torch.device:
        return torch.device(self.capabilities.name, local_rank)

    def set_device(self, local_rank: int) -> None:
        self.module.set_device(local_rank)

    def synchronize(self) -> None:
        self.module.synchronize()

    def peak_memory_bytes(self) -> int:
        return self.module.max_memory_allocated()

    def seed(self, seed: int) -> None:
        self.module.manual_seed(seed)

    def rng_state(self) -> torch.Tensor:
        return self.module.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.module.set_rng_state(state)

    def deterministic(self, seed: int) -> AbstractContextManager[None]:
        return deterministic(self.capabilities.name, seed=seed)

    def bridge(self) -> AbstractContextManager[None]:
        """On cuda nothing is redirected: Megatron-core is at home. Repairs that its installation needs are applied."""
        return bridge(None if self.capabilities.name == "cuda" else _npu_redirection(self.module))


def _npu_redirection(npu: ModuleType) -> Redirection:
    """``torch.cuda`` becomes ``torch.npu``, for Megatron-core only.

    torch_npu's own ``transfer_to_npu`` does the same for the whole process, on import and for good: every library
    would then see an npu where it asked for cuda, and nothing could take it back.
    """

    def set_rng_state(state: torch.Tensor, device: object = None, graph_safe: bool = False) -> None:
        npu.set_rng_state(state)

    def nothing(*args: object, **kwargs: object) -> None:
        pass

    return Redirection(
        device=torch.device("npu"),
        cuda={
            **vars(npu),
            "current_device": lambda: torch.device("npu", npu.current_device()),
            "get_rng_state": lambda device=None: npu.get_rng_state(),
            "set_rng_state": set_rng_state,
            "random": SimpleNamespace(
                get_rng_state=lambda device=None: npu.get_rng_state(), set_rng_state=set_rng_state
            ),
            "nvtx": SimpleNamespace(range_push=nothing, range_pop=nothing),
        },
        uneven={},
        assignments={
            "torch:Tensor.cuda": torch.Tensor.npu,  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
            "torch.nn:Module.cuda": torch.nn.Module.npu,  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
            "megatron.core.tensor_parallel.random:_set_cuda_rng_state": set_rng_state,
            "megatron.core.transformer.module:_FLOAT_TYPES": (torch.FloatTensor, npu.FloatTensor),
            "megatron.core.transformer.module:_HALF_TYPES": (torch.HalfTensor, npu.HalfTensor),
            "megatron.core.transformer.module:_BF16_TYPES": (torch.BFloat16Tensor, npu.BFloat16Tensor),
        },
        pins_memory=True,
        host_generator_is_device_generator=False,
    )
