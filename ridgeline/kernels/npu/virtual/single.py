"""The single-op level: ``torch.ops.npu`` calls that take CPU tensors."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ridgeline.kernels.npu.virtual.emulations.table import EMULATIONS
from ridgeline.kernels.npu.virtual.load import load_torch_npu


@contextmanager
def npu_ops_on_cpu(emulations: Mapping[str, Callable[..., Any]] = EMULATIONS) -> Iterator[None]:
    """A context in which the ops of torch_npu compute on CPU tensors, in this thread and all others.

    Schemas are the real ones. Gradients are those of the functions in ``emulations``, by torch's own autograd:
    torch_npu's are registered for npu tensors only, and `emulated_npu` runs those.

    Args:
        emulations: From the name of an op to its meaning.

    Raises:
        LoweringError: The virtual NPU cannot be made here.
    """
    load_torch_npu()
    library = torch.library.Library("npu", "IMPL")
    for name, meaning in emulations.items():
        if name.startswith("npu::"):  # the others are torch's own, of which a CPU has no need
            library.impl(_overload(name), meaning, "CPU")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered.*")
            yield
    finally:
        library._destroy()


def _overload(name: str) -> str:
    """The overload that an emulation takes; npu_apply_adam_w has one that writes to its arguments only."""
    short = name.removeprefix("npu::")
    return f"{short}.out" if short == "npu_apply_adam_w" else short
