"""From the name of a kernel to its function: the import that choosing did without."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ridgeline.core.errors import LoweringError, nearest
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
