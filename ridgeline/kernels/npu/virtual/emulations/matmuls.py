"""Matrix products over groups of rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _counts(group_list: Tensor | Sequence[int], group_list_type: int | None) -> list[int]:
    """Rows of each group: a list of type 1 holds them, one of type 0 where each group ends."""
    values = group_list.tolist() if isinstance(group_list, Tensor) else list(group_list)
    if group_list_type == 1:
        return values
    return [end - begin for begin, end in zip((0, *values), values, strict=False)]


def grouped_matmul(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    group_list: Tensor | Sequence[int] | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    **unused: Any,
) -> list[Tensor]:
    """One tensor of rows and one output: rows grouped (type 0), or the summed dim (type 2).

    Of matrices grouped rows take one tensor, or a list of up to 128 that is not in fp32; all turned or none.
    """
    assert not any(value is not None for value in unused.values() if value not in (0, [])), unused
    assert len(x) == 1
    assert split_item in (2, 3)
    assert group_list is not None
    left, counts = x[0].double(), _counts(group_list, group_list_type)
    assert len(counts) > 1
    if group_type == 0:
        assert sum(counts) == left.shape[0]
        if len(weight) > 1:
            assert len(weight) <= 128
            assert all(matrix.dim() == 2 and matrix.dtype != torch.float32 for matrix in weight)
            assert len({matrix.is_contiguous() for matrix in weight}) == 1
        right = [matrix.double() for matrix in (weight if len(weight) > 1 else weight[0])]
        assert len(counts) == len(right)
        rows = left.split(counts)
        out = torch.cat([part @ matrix for part, matrix in zip(rows, right, strict=True)])
    else:
        assert group_type == 2
        assert len(weight) == 1
        right = weight[0].double()
        assert sum(counts) == left.shape[1] == right.shape[0]
        out = torch.stack([a @ b for a, b in zip(left.split(counts, 1), right.split(counts), strict=True)])
    return [out.to(x[0].dtype)]


def grouped_matmul_add_(
    input: Tensor,
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    *,
    transpose_x: bool = True,
    transpose_weight: bool = False,
    group_type: int = 2,
    group_list_type: int | None = 0,
) -> Tensor:
    """Adds each group's ``x^T @ weight`` to fp32 sums in place."""
    assert transpose_x
    assert not transpose_weight
    assert group_type == 2
    assert input.dtype == torch.float32
    counts = _counts(group_list, group_list_type)
    parts = zip(x.double().split(counts), weight.double().split(counts), strict=True)
    input.add_(torch.stack([a.t() @ b for a, b in parts]).view(input.shape).float())
    return input
