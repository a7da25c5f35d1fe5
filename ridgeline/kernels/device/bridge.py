"""The context in which Megatron-core's hard-coded "cuda" means another device.

Megatron-core 0.16 names its device in four ways, and each has one answer here:

    torch.cuda.f()                    its modules see, under the name ``torch``, a copy with another ``cuda``
    torch.zeros(..., device="cuda")   ... and with factories that read "cuda" as the device
    tensor.cuda(), module.cuda()      the methods move to the device
    tensor.type() == "torch.cuda..."  the method answers Megatron-core in the spelling it compares with

The copy is bound in the modules of `REDIRECTED`, so that torch itself, and whoever else uses it, stays as it was and no
operator pays for a redirection: a factory called by Megatron-core costs a keyword lookup more, all else costs nothing.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import attrs
import torch

from ridgeline.kernels.device.upstream import REPAIRS

REDIRECTED: tuple[str, ...] = (
    "datasets.blended_megatron_dataset_builder",
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.mapping",
    "dist_checkpointing.strategies.async_utils",
    "dist_checkpointing.strategies.filesystem_async",
    "dist_checkpointing.strategies.fully_parallel",
    "dist_checkpointing.strategies.state_dict_saver",
    "dist_checkpointing.strategies.torch",
    "distributed.distributed_data_parallel",
    "distributed.param_and_grad_buffer",
    "models.common.embeddings.rope_utils",
    "models.common.embeddings.rotary_pos_embedding",
    "models.common.embeddings.yarn_rotary_pos_embedding",
    "models.common.language_module.language_module",
    "models.gpt.gpt_model",
    "optimizer.clip_grads",
    "optimizer.distrib_optimizer",
    "optimizer.grad_scaler",
    "optimizer.optimizer",
    "parallel_state",
    "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules",
    "pipeline_parallel.utils",
    "rerun_state_machine",
    "tensor_parallel.data",
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "tensor_parallel.random",
    "tensor_parallel.utils",
    "timers",
    "transformer.attention",
    "transformer.dot_product_attention",
    "transformer.mlp",
    "transformer.module",
    "transformer.moe.experts",
    "transformer.moe.moe_utils",
    "transformer.moe.router",
    "transformer.moe.shared_experts",
    "transformer.moe.token_dispatcher",
    "transformer.multi_token_prediction",
    "transformer.transformer_layer",
    "transformer.utils",
    "utils",
)
"""Modules of ``megatron.core`` whose global ``torch`` is replaced: all on our paths that name a device."""

FACTORIES: tuple[str, ...] = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randint",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
"""Functions of torch that take ``device=`` and that Megatron-core calls with "cuda"."""


@attrs.frozen(kw_only=True)
class Redirection:
    """Where calls meant for CUDA go.

    Attributes:
        device: What "cuda" without an index means.
        cuda: Names of ``torch.cuda`` that are replaced.
        uneven: Names of ``torch.distributed`` that are replaced where Megatron-core gathers parts of unequal length.
        assignments: What is assigned besides, as target to value: ``Tensor.cuda`` and the like.
        pins_memory: Whether pinning host memory is possible.
        host_generator_is_device_generator: Megatron-core saves and compares a host and a device generator; where they
            are one, its host side is silenced, lest it warn of every draw and save each state twice.
    """

    device: torch.device
    cuda: Mapping[str, object]
    uneven: Mapping[str, object]
    assignments: Mapping[str, object]
    pins_memory: bool
    host_generator_is_device_generator: bool


@contextmanager
def bridge(redirection: Redirection | None) -> Iterator[None]:
    """Redirect (if asked) and repair Megatron-core, and take all of it back on leaving."""
    # All imports come first: a module imported while others are assigned would bind what is temporary.
    for name in REDIRECTED:
        importlib.import_module(f"megatron.core.{name}")
    repairs = [(repair.target, repair.replacement) for repair in REPAIRS if repair.is_needed()]
    with assigned([*repairs, *(redirects(redirection) if redirection else ())]):
        yield


def redirects(redirection: Redirection) -> list[tuple[str, object]]:
    """Every assignment of a redirection, as (target, value)."""
    facade = torch_facade(redirection)
    silent = torch_facade(redirection, get_rng_state=lambda: torch.empty(0), set_rng_state=lambda state: None)
    uneven = _copy(torch.distributed, redirection.uneven)
    random = silent if redirection.host_generator_is_device_generator else facade
    return [
        *((f"megatron.core.{name}:torch", facade) for name in REDIRECTED),
        ("megatron.core.tensor_parallel.random:torch", random),
        ("megatron.core.tensor_parallel.mappings:torch", torch_facade(redirection, distributed=uneven)),
        ("torch:Tensor.type", _type_for_megatron(torch.Tensor.type)),
        *redirection.assignments.items(),
    ]


def torch_facade(redirection: Redirection, **overrides: object) -> ModuleType:
    """A copy of torch's namespace with another ``cuda`` and factories that read "cuda" as the device."""
    factories = {name: _redirected(getattr(torch, name), redirection) for name in FACTORIES}
    return _copy(torch, {**factories, "cuda": _copy(torch.cuda, redirection.cuda), **overrides})


def _copy(module: ModuleType, changes: Mapping[str, object]) -> ModuleType:
    copy = ModuleType(module.__name__)
    copy.__dict__.update({**vars(module), **changes})
    return copy


def _redirected(factory: Callable[..., Any], redirection: Redirection) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and _is_cuda(device):
            kwargs["device"] = redirection.device
        if not redirection.pins_memory:
            kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call


def _is_cuda(device: object) -> bool:
    return device.startswith("cuda") if isinstance(device, str) else getattr(device, "type", None) == "cuda"


def _type_for_megatron(type_: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.type`` that tells callers in Megatron-core "torch.cuda.FloatTensor", and all others the truth."""

    def spelled(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_(tensor, *args, **kwargs)
        if isinstance(answer, str) and sys._getframe(1).f_globals.get("__name__", "").startswith("megatron.core."):
            return f"torch.cuda.{answer.rpartition('.')[2]}"
        return answer

    return spelled


_ABSENT = object()


@contextmanager
def assigned(assignments: Iterable[tuple[str, object]]) -> Iterator[None]:
    """Assign values to targets, ``module:name`` or ``module:Class.name``, and put back what was there on leaving.

    Example:
        >>> import math
        >>> with assigned([("math:pi", 3)]):
        ...     math.pi
        3
        >>> math.pi > 3
        True
    """
    before: list[tuple[Any, str, object]] = []
    try:
        for target, value in assignments:
            module, _, path = target.partition(":")
            *owners, name = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            before.append((owner, name, vars(owner).get(name, _ABSENT)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            delattr(owner, name) if value is _ABSENT else setattr(owner, name, value)
