"""Edge modules by name, loaded when called: they import torch, which most commands never need."""

from importlib import import_module
from typing import Any


def edge(name: str) -> Any:
    """What an edge module calls by a name, ``package.module:name``.

    Example:
        >>> edge("math:gcd")(12, 18)
        6
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
