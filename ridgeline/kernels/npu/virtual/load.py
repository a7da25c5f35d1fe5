"""torch_npu, imported over the stand-ins."""

import ctypes
import importlib
import os
import sys
from types import ModuleType

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual.install import torch_npu_folder
from ridgeline.kernels.npu.virtual.stubs import build_stubs

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def load_torch_npu() -> ModuleType:
    """Import torch_npu into this process, for good: torch then has a device named npu that computes nothing.

    Values come from `emulated_npu` alone; outside it, kernels return without doing anything.

    Raises:
        LoweringError: The stand-ins cannot be built, or torch_npu fails over them.
    """
    if "torch_npu" in sys.modules:
        return sys.modules["torch_npu"]
    # Found by their names when torch_npu asks for them: no search path needs to be set before the process starts.
    for path in build_stubs():
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    sys.path.append(str(torch_npu_folder()))
    os.environ["TASK_QUEUE_ENABLE"] = "0"  # else a thread would hand ops to kernels that are not there
    try:
        return importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise LoweringError(f"torch_npu does not load over the virtual NPU: {error}") from error
