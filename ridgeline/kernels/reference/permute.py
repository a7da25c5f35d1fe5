"""Moving tokens to their experts and back, in plain torch.

Legend: ``t`` = tokens, ``k`` = experts a token chose, ``e`` = experts, ``m`` = t*k rows, ``h`` = hidden.
"""

import torch
from torch import Tensor


def permute(tokens_th: Tensor, experts_tk: Tensor) -> tuple[Tensor, Tensor]:
    """One row for every choice, in the order of the experts, and within an expert in that of the tokens.

    Args:
        tokens_th: (t, h), float.
        experts_tk: (t, k), integers: the experts that each token chose.

    Returns:
        The rows, (t*k, h), and the place of each choice among them, (t*k,) int32: row ``places[i*k + j]`` is token i
        for its choice j.
    """
    order = experts_tk.flatten().argsort(stable=True)
    return tokens_th[order // experts_tk.shape[1]], order.argsort().int()


def unpermute(rows_mh: Tensor, places_m: Tensor, weights_tk: Tensor) -> Tensor:
    """The weighted sum of each token's rows, computed in fp32 or wider.

    Args:
        rows_mh: (t*k, h), float, as `permute` orders them.
        places_m: From `permute`.
        weights_tk: (t, k), float.

    Returns:
        (t, h), the dtype of the rows.
    """
    rows_tkh = rows_mh[places_m].unflatten(0, weights_tk.shape)
    wide = torch.promote_types(rows_mh.dtype, torch.float32)
    return (rows_tkh.to(wide) * weights_tk.to(wide).unsqueeze(-1)).sum(1).to(rows_mh.dtype)


def permute_by_map(
    tokens_th: Tensor, map_te: Tensor, weights_te: Tensor, *, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One row for every True, expert by expert.

    Args:
        tokens_th: (t, h), float.
        map_te: (t, e), bool; every token has k Trues.
        weights_te: (t, e), float.
        topk: k; that it is told spares a wait for the device.

    Returns:
        The rows, (t*k, h); the weight of each, (t*k,); and the places of a token's rows, experts ascending,
        (t*k,) int32.
    """
    assert topk <= map_te.shape[1], topk
    _, token_m = map_te.t().nonzero(as_tuple=True)
    return tokens_th[token_m], weights_te.t()[map_te.t()], token_m.argsort(stable=True).int()


def unpermute_by_map(rows_mh: Tensor, places_m: Tensor, map_te: Tensor) -> Tensor:
    """The sum of each token's rows, computed in fp32 or wider.

    Args:
        rows_mh: (t*k, h), float, as `permute_by_map` orders them.
        places_m: From `permute_by_map`.
        map_te: (t, e), bool.

    Returns:
        (t, h), the same dtype.
    """
    rows_tkh = rows_mh[places_m].unflatten(0, (map_te.shape[0], -1))
    return rows_tkh.sum(1, dtype=torch.promote_types(rows_mh.dtype, torch.float32)).to(rows_mh.dtype)
