"""The host processor as a device: gloo collectives, no streams, one generator."""

import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import attrs
import torch

from ridgeline.kernels.capabilities import Capabilities
from ridgeline.kernels.device import uneven
from ridgeline.kernels.device.bridge import Redirection, bridge
from ridgeline.kernels.device.determinism import deterministic

_CPU = torch.device("cpu")


@attrs.frozen(kw_only=True)
class Cpu:
    """Implements `Device` on the host; every rank of a node shares it."""

    capabilities: Capabilities

    def torch_device(self, local_rank: int) -> torch.device:
        return _CPU

    def set_device(self, local_rank: int) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def peak_memory_bytes(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def rng_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)

    def deterministic(self, seed: int) -> AbstractContextManager[None]:
        return deterministic(self.capabilities.name, seed=seed)

    def bridge(self) -> AbstractContextManager[None]:
        return bridge(REDIRECTION)


@attrs.frozen
class HostStream:
    """The one stream of a CPU: work is done when the call returns, so all order holds already."""

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: "HostStream") -> None:
        pass

    def wait_event(self, event: "HostEvent") -> None:
        pass

    def record_event(self, event: "HostEvent | None" = None) -> "HostEvent":
        return HostEvent()


@attrs.frozen
class HostEvent:
    """A point in `HostStream`: always past."""

    def record(self, stream: HostStream | None = None) -> None:
        pass

    def wait(self, stream: HostStream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def _get_rng_state(device: object = None) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, device: object = None, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


def _same(subject: object, *args: object, **kwargs: object) -> object:
    return subject


REDIRECTION = Redirection(
    device=_CPU,
    cuda={
        "current_device": lambda: _CPU,
        "set_device": _nothing,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "Stream": lambda *args, **kwargs: HostStream(),
        "Event": lambda *args, **kwargs: HostEvent(),
        "stream": nullcontext,
        "current_stream": lambda device=None: HostStream(),
        "default_stream": lambda device=None: HostStream(),
        "manual_seed": torch.manual_seed,
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
        "random": SimpleNamespace(get_rng_state=_get_rng_state, set_rng_state=_set_rng_state),
        "nvtx": SimpleNamespace(range_push=_nothing, range_pop=_nothing),
    },
    uneven={"all_gather": uneven.all_gather, "reduce_scatter": uneven.reduce_scatter},
    assignments={
        "torch:Tensor.cuda": _same,
        "torch.nn:Module.cuda": _same,
        "megatron.core.tensor_parallel.random:_set_cuda_rng_state": _set_rng_state,
    },
    pins_memory=False,
    host_generator_is_device_generator=True,
)
