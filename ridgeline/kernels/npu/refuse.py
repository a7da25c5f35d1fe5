"""Errors before a call, instead of CANN's after it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ridgeline.core.errors import LoweringError, one_of

HALF_OR_SINGLE = (torch.bfloat16, torch.float16, torch.float32)


def refuse_unless(holds: bool, op: str, path: str, value: object, rule: str, way_out: str = "") -> None:
    """Raise ``op path=value: rule; way out`` unless a condition holds.

    Raises:
        LoweringError: It does not.
    """
    if not holds:
        text = f"op={op!r}: {path}={value!r}: {rule}"
        raise LoweringError(f"{text}; {way_out}" if way_out else text)


def refuse_dtypes(op: str, *, allowed: Iterable[torch.dtype] = HALF_OR_SINGLE, **tensors: Tensor | None) -> None:
    """Refuse tensors of a dtype that the op does not take, or of different ones.

    Raises:
        LoweringError: Names the first such tensor.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(given))
    for name, tensor in given.items():
        names = [str(dtype).removeprefix("torch.") for dtype in allowed]
        refuse_unless(tensor.dtype in allowed, op, f"{name}.dtype", tensor.dtype, "not taken", one_of(names))
        rule = f"must be that of {first}, {given[first].dtype}"
        refuse_unless(tensor.dtype == given[first].dtype, op, f"{name}.dtype", tensor.dtype, rule)


def refuse_shape(op: str, path: str, tensor: Tensor, shape: tuple[int, ...], way_out: str = "") -> None:
    """Refuse a tensor whose shape does not follow from the others'.

    Raises:
        LoweringError: Names the shape and the one it must have.
    """
    refuse_unless(tensor.shape == shape, op, f"{path}.shape", tuple(tensor.shape), f"must be {shape}", way_out)
