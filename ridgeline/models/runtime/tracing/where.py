"""Where a program stands: in which action of its schedule, which phase of it, and which module.

A forward is told by hooks of the modules. A backward is told by autograd, whose nodes are numbered as the forward made
them; numbers are of a thread, so that a trace keeps autograd in the thread of the forward.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch

from ridgeline.parallel.actions import Action

UPDATE = "update"
OUTSIDE = "schedule"
"""The module of what no module does: sends, losses, sums of gradients."""

GRADIENT_NODES = 1 << 62
"""Nodes that gather a parameter's gradient have no number but the highest: they belong to the node before them."""


class Where:
    """The position of one rank in its step.

    Attributes:
        at: The action, or ``update``.
        phase: ``forward``, ``recompute``, ``backward`` or ``step``.
        started: How many actions have begun.
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        self.at = UPDATE
        self.phase = "step"
        self.started = 0
        self._actions = actions
        self._path = [OUTSIDE]
        self._numbers: list[int] = [0]
        self._modules: list[str] = [OUTSIDE]
        self._backward = False
        self._last = OUTSIDE

    def watch(self, chunks: Sequence[torch.nn.Module]) -> None:
        """Follow the modules of every chunk, and take each chunk's forward for an action."""
        for chunk in chunks:
            for name, module in chunk.named_modules():
                short = _pattern(name)
                if module is chunk:
                    module.register_forward_pre_hook(lambda *_: self._begin("F"))
                elif short:
                    module.register_forward_pre_hook(lambda *_, path=short: self._enter(path))
                    module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def now(self) -> str:
        """The module that runs, and the phase beside it, for the operation about to run."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            if self._backward and self.started == len(self._actions):
                self.at, self.phase = UPDATE, "step"
            self._backward = False
            return self._path[-1]
        if not self._backward:
            self._backward = True
            self._begin("B")
        if len(self._path) > 1:  # a forward within a backward
            self.phase = "recompute"
            return self._path[-1]
        self.phase = "backward"
        number = node._sequence_nr()
        if number < GRADIENT_NODES:
            self._last = self._modules[bisect_right(self._numbers, number) - 1]
        return self._last

    def _begin(self, kind: str) -> None:
        if self.started == len(self._actions):
            raise AssertionError(f"a {kind} after the last action")
        action = self._actions[self.started]
        assert action.kind == kind, f"{kind} where the plan has {action}"
        self.started += 1
        self.at, self.phase = str(action), "forward" if kind == "F" else "backward"

    def _enter(self, path: str) -> None:
        self._path.append(path)
        self._mark()

    def _leave(self) -> None:
        self._path.pop()
        self._mark()

    def _mark(self) -> None:
        number = torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]  in no stub
        if number > self._numbers[-1]:
            self._numbers.append(number)
            self._modules.append(self._path[-1])
        else:
            self._modules[-1] = self._path[-1]


def _pattern(name: str) -> str:
    """A module's name without its wrappers, layers and experts by ``*``.

    Example:
        >>> _pattern("module.module.decoder.layers.3.mlp.experts.local_experts.1.linear_fc1")
        'decoder.layers.*.mlp.experts.local_experts.*.linear_fc1'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", re.sub(r"^(module\.?)+", "", name))
