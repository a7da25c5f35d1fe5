"""Bugs of Megatron-core 0.16 that only an assignment mends: what is assigned where, and why.

A test asks of each row whether the bug is still there, and so fails on the day it is mended: then the row goes.
"""

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch


@attrs.frozen(kw_only=True)
class Repair:
    """One assignment.

    Attributes:
        target: ``module:name``.
        replacement: What stands there instead.
        upstream: Where the bug is in NVIDIA/Megatron-LM.
        why: What goes wrong without it.
        is_needed: Whether the bug is there in this installation.
    """

    target: str
    replacement: object
    upstream: str
    why: str
    is_needed: Callable[[], bool]


def move_tensor_to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """A tensor on the host, as an array if asked, whatever device it was on; anything else as it is."""
    if not torch.is_tensor(tensor):
        return tensor
    if record_stream and tensor.device.type != "cpu":
        tensor.record_stream(torch.accelerator.current_stream())
    host = tensor.detach().to("cpu", non_blocking=True)
    return host.numpy() if as_numpy else host


def _has_no(module: str, name: str) -> Callable[[], bool]:
    return lambda: not hasattr(importlib.import_module(module), name)


def _leaves_host_tensors(module: str) -> Callable[[], bool]:
    def is_needed() -> bool:
        move = importlib.import_module(module).maybe_move_tensor_to_cpu
        return torch.is_tensor(move(torch.zeros(1), as_numpy=True))

    return is_needed


def _claims_transformer_engine(module: str) -> Callable[[], bool]:
    def is_needed() -> bool:
        return importlib.import_module(module).HAVE_TE and importlib.util.find_spec("transformer_engine") is None

    return is_needed


class NoFp8:
    """Transformer Engine's answer when there is none: nothing is computed in fp8."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def no_fp8(**settings: Any) -> AbstractContextManager[None]:
    """A context that changes nothing, in the place of those that set fp8 up."""
    return nullcontext()


_RANDOM = "megatron.core.tensor_parallel.random"
_OF_NORMS = "core_v0.16.1, megatron/core/tensor_parallel/random.py, CheckpointWithoutOutput"

REPAIRS: tuple[Repair, ...] = (
    Repair(
        target="megatron.core.transformer.moe.moe_utils:te_general_gemm",
        replacement=None,
        upstream="core_v0.16.1, megatron/core/transformer/moe/moe_utils.py, RouterGatingLinearFunction",
        why="without Transformer Engine the name is never bound, yet every router reads it: NameError",
        is_needed=_has_no("megatron.core.transformer.moe.moe_utils", "te_general_gemm"),
    ),
    Repair(
        target="megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu",
        replacement=move_tensor_to_host,
        upstream="core_v0.16.1, megatron/core/transformer/moe/moe_utils.py, maybe_move_tensor_to_cpu",
        why="only CUDA tensors become arrays; the all-to-all's split sizes on another device stay tensors: TypeError",
        is_needed=_leaves_host_tensors("megatron.core.transformer.moe.moe_utils"),
    ),
    Repair(
        target="megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
        replacement=move_tensor_to_host,
        upstream="core_v0.16.1, megatron/core/transformer/moe/token_dispatcher.py, imported by name",
        why="the same function under its second name",
        is_needed=_leaves_host_tensors("megatron.core.transformer.moe.token_dispatcher"),
    ),
    Repair(
        target="megatron.core.transformer.multi_latent_attention:HAVE_TE",
        replacement=False,
        upstream="core_v0.16.1, megatron/core/transformer/multi_latent_attention.py, first imports",
        why="importing TELinear=None succeeds without Transformer Engine, and isinstance(x, None) raises: TypeError",
        is_needed=_claims_transformer_engine("megatron.core.transformer.multi_latent_attention"),
    ),
    Repair(
        target=f"{_RANDOM}:FP8GlobalStateManager",
        replacement=NoFp8,
        upstream=_OF_NORMS,
        why="its default fp8=False is not None, so that recomputed norms ask for a name that nobody bound: NameError",
        is_needed=_has_no(_RANDOM, "FP8GlobalStateManager"),
    ),
    Repair(
        target=f"{_RANDOM}:activation_recompute_forward",
        replacement=no_fp8,
        upstream=_OF_NORMS,
        why="the same, for the context of the forward and of its recomputation",
        is_needed=_has_no(_RANDOM, "activation_recompute_forward"),
    ),
    Repair(
        target=f"{_RANDOM}:fp8_autocast",
        replacement=no_fp8,
        upstream=_OF_NORMS,
        why="the same, for the recomputation",
        is_needed=_has_no(_RANDOM, "fp8_autocast"),
    ),
)
