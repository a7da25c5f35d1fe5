"""From the name of a kernel to its function: the import that choosing did without."""

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ridgeline.core.errors import LoweringError, nearest
from ridgeline.kernels.capabilities import DeviceName
from ridgeline.kernels.select import Policy, available
from ridgeline.kernels.table import KERNELS, Kernel


def load_kernel(op: str, name: str, *, table: Mapping[str, tuple[Kernel, ...]] = KERNELS) -> Callable[..., Any]:
    """Import a kernel's function.

    Args:
        op: What it computes.
        name: The kernel's name, as a `Choice` or a plan has it.
        table: Where both are found.

    Raises:
        LoweringError: No such kernel, or what it is made of is not installed.
    """
    kernels = {kernel.name: kernel for kernel in table.get(op, ())}
    if name not in kernels:
        raise LoweringError(f"kernel={name!r}: unknown for op={op!r}; {nearest(name, kernels)}")
    module, _, function = kernels[name].function.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise LoweringError(f"kernel={name!r} of op={op!r} cannot be imported: {error}") from error


def kernels_here(
    chosen: Iterable[tuple[str, str]], device: DeviceName, *, policy: Policy
) -> Mapping[str, Callable[..., Any]]:
    """The functions of chosen kernels, by op; on an npu each is checked against the machine's software first.

    A kernel that the machine lacks is replaced by plain torch, with a line in the log.

    Args:
        chosen: Ops and their kernels, as a plan has them.
        device: Where they run; torch_npu must be imported if it is an npu.
        policy: "strict" replaces none.

    Raises:
        LoweringError: A kernel does not exist, or is missing here under "strict".
    """
    chosen = tuple(chosen)
    if device != "npu":
        return {op: load_kernel(op, name) for op, name in chosen}
    from ridgeline.kernels.npu.probe import installed_software

    choices = available(chosen, software=installed_software(), policy=policy)
    for choice in choices:
        if choice.passed_over:
            logging.getLogger(__name__).warning("%s", choice)
    return {choice.op: load_kernel(choice.op, choice.kernel) for choice in choices}
