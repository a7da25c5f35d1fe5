"""The emulated level: an npu device that computes, in host memory, with torch_npu's own autograd and allocator."""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ridgeline.kernels.npu.virtual.emulations.table import EMULATIONS
from ridgeline.kernels.npu.virtual.load import load_torch_npu

Executed = set[str]

_OF_MEMORY = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_strided", "detach", "alias", "lift_fresh", "set_", "resize_", "record_stream")
)
"""Ops that move no number: torch_npu's own do them."""

_CPU = torch.device("cpu")


@contextmanager
def emulated_npu(
    emulations: Mapping[str, Callable[..., Any]] = EMULATIONS, *, executed: Executed | None = None
) -> Iterator[None]:
    """A context in which tensors on ``npu`` hold numbers and ops on them compute.

    Every op runs on the host, over the memory of the npu tensors: torch's own ops as torch's, the ops of torch_npu as
    ``emulations`` define them, with the shapes and strides that torch_npu's kernels would give. Collectives work over
    the backend ``cpu:gloo,npu:gloo``.

    Args:
        emulations: From the name of an op (``npu::npu_rms_norm``) to its meaning.
        executed: Filled with the names of the npu ops that ran.

    Raises:
        LoweringError: The virtual NPU cannot be made here.
        NotImplementedError: On an op of torch_npu that has no emulation.
    """
    load_torch_npu()
    with _Emulation(emulations, executed if executed is not None else set()):
        yield


class _Emulation(TorchDispatchMode):
    def __init__(self, emulations: Mapping[str, Callable[..., Any]], executed: Executed) -> None:
        super().__init__()
        self.emulations = emulations
        self.executed = executed

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves, spec = tree_flatten((args, kwargs or {}))
        target = _target(kwargs or {}, leaves)
        name = func._schema.name
        if target is None or func.is_view or name in _OF_MEMORY:
            return func(*args, **(kwargs or {}))
        hosts = {id(leaf): host_alias(leaf) for leaf in leaves if _is_npu(leaf)}
        host_args, host_kwargs = tree_unflatten([_on_host(leaf, hosts) for leaf in leaves], spec)
        returned = self._meaning(name, func)(*host_args, **host_kwargs)
        origins = {id(hosts[id(leaf)]): leaf for leaf in leaves if _is_npu(leaf)}
        outputs, out_spec = tree_flatten(returned)
        return tree_unflatten([_on_npu(output, origins, target) for output in outputs], out_spec)

    def _meaning(self, name: str, func: Any) -> Callable[..., Any]:
        if not name.startswith("npu::"):
            return self.emulations.get(name, func)  # torch has some ops without a kernel for the host
        if name not in self.emulations:
            raise NotImplementedError(f"op={name!r}: has no emulation; known: {', '.join(sorted(self.emulations))}")
        self.executed.add(name)
        return self.emulations[name]


def host_alias(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the very memory of an npu tensor, with its shape, strides and dtype."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0 or tensor.numel() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    alias = torch.empty(0, dtype=tensor.dtype)
    return alias.set_(flat.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _is_npu(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "npu"


def _target(kwargs: Mapping[str, Any], leaves: Sequence[object]) -> torch.device | None:
    """Where an op's new tensors go; None if it has nothing to do with an npu."""
    inputs = [leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.device.type == "npu"]
    named = kwargs.get("device")
    if named is not None and (inputs or torch.device(named).type == "npu"):
        return torch.device(named)
    return inputs[0] if inputs else None


def _on_host(leaf: Any, hosts: Mapping[int, torch.Tensor]) -> Any:
    if _is_npu(leaf):
        return hosts[id(leaf)]
    if isinstance(leaf, torch.device) and leaf.type == "npu":
        return _CPU
    if isinstance(leaf, torch.Generator) and leaf.device.type == "npu":
        return None  # the host's own generator, which the same seeds seed
    return leaf


def _on_npu(output: Any, origins: Mapping[int, torch.Tensor], target: torch.device) -> Any:
    """An output on its device: the argument that it is, or a copy."""
    if not isinstance(output, torch.Tensor):
        return output
    if id(output) in origins:
        return origins[id(output)]
    if target.type != "npu":
        return output
    copy = torch.empty_strided(output.size(), output.stride(), dtype=output.dtype, device=target)
    host_alias(copy).copy_(output)
    return copy
