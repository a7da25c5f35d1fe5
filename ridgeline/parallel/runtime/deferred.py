"""Weight gradients that wait: products put aside in a backward, and carried out later."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import attrs
import torch

Compute: TypeAlias = Callable[[], Sequence[torch.Tensor]]
"""The gradients of some parameters."""


class Product(NamedTuple):
    """What is put aside: parameters, and what gives a gradient of each."""

    params: tuple[torch.nn.Parameter, ...]
    compute: Compute


@attrs.frozen(eq=False)
class Deferred:
    """The products of a chunk that wait.

    Attributes:
        add: Adds a gradient to those that a parameter has.
        waiting: A list for each `collecting` about the backward that runs; none where products are not to wait.
    """

    add: Callable[[torch.nn.Parameter, torch.Tensor], None]
    waiting: list[list[Product]] = attrs.field(factory=list, init=False)


@contextmanager
def collecting(deferred: Deferred) -> Iterator[list[Product]]:
    """Let products wait that are offered in this context, in the list it gives."""
    products: list[Product] = []
    deferred.waiting.append(products)
    try:
        yield products
    finally:
        deferred.waiting.pop()


def offer(deferred: Deferred, params: Sequence[torch.nn.Parameter], compute: Compute) -> bool:
    """Put a product aside; False, and it is still to do, where none is to wait."""
    if not deferred.waiting:
        return False
    deferred.waiting[-1].append(Product(tuple(params), compute))
    return True


@torch.no_grad()
def carry_out(deferred: Deferred, products: list[Product]) -> None:
    """Compute products and add their gradients, the oldest first; each is let go when it is done."""
    products.reverse()
    while products:
        params, compute = products.pop()
        for param, gradient in zip(params, compute(), strict=True):
            deferred.add(param, gradient)


@attrs.frozen(eq=False)
class LateProducts:
    """The products of a part of one backward, which are carried out behind that part.

    Between two places that a forward marks, in its order: ``carried_out_behind``, ``waiting_from``. Where products wait
    already, they go on waiting.
    """

    deferred: Deferred
    own: list[list[Product]] = attrs.field(factory=list, init=False)


def carried_out_behind(tensor: torch.Tensor, late: LateProducts | None) -> torch.Tensor:
    """Where the backward, having left the part, carries its products out; without any, nothing is changed."""
    return tensor if late is None else _CarryOut.apply(tensor, late)  # pyright: ignore[reportReturnType]


def waiting_from(tensor: torch.Tensor, late: LateProducts | None) -> torch.Tensor:
    """Where the backward comes into the part."""
    return tensor if late is None else _Wait.apply(tensor, late)  # pyright: ignore[reportReturnType]


class _Mark(torch.autograd.Function):
    """A place in a forward that its backward comes by."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, late: LateProducts) -> torch.Tensor:
        ctx.late = late
        return tensor.view_as(tensor)


class _Wait(_Mark):
    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        late = ctx.late
        if not late.deferred.waiting:
            late.own.append([])
            late.deferred.waiting.append(late.own[0])
        return gradients[0], None


class _CarryOut(_Mark):
    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        late = ctx.late
        while late.own:
            late.deferred.waiting.pop()
            carry_out(late.deferred, late.own.pop())
        return gradients[0], None
