"""Edge modules by name, loaded when called: they import torch, which most commands never need."""

import os
import sys
import warnings
from importlib import import_module
from typing import Any

UPSTREAM = r"(megatron|torch|transformers)\."


def edge(name: str) -> Any:
    """What an edge module calls by a name, ``package.module:name``.

    Upstream's warnings of its own code (Apex is missing, a name of its own is deprecated) come on every rank and help
    nobody here: they are hidden unless Python was asked for warnings. Nor does torch load a vendor's backend by itself,
    which fails where the driver is not installed; who needs one imports it.

    Example:
        >>> edge("math:gcd")(12, 18)
        6
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=UPSTREAM)
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
