"""The selective scan of Mamba-2, chunk by chunk, in plain torch.

Legend: ``b`` = batch, ``s`` = sequence, ``n`` = heads, ``p`` = head_dim, ``g`` = groups, ``d`` = state size;
``c`` = positions of a chunk, ``l`` = chunks.
"""

import torch
from torch import Tensor

CHUNK = 64


def mamba2_scan(
    x_bsnp: Tensor,
    dt_bsn: Tensor,
    a_n: Tensor,
    b_bsgd: Tensor,
    c_bsgd: Tensor,
    *,
    skip_n: Tensor | None = None,
    state_bnpd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A state that decays and gathers: ``h <- exp(dt a) h + dt x b^T;  y = h c + skip x``, position after position.

    Args:
        x_bsnp: (b, s, n, p), float.
        dt_bsn: (b, s, n), fp32 or wider, > 0: step sizes, after their softplus.
        a_n: (n,), the same dtype, < 0.
        b_bsgd: (b, s, g, d), float; g divides n, and head i reads group ``i // (n/g)``.
        c_bsgd: The same.
        skip_n: (n,); None for none.
        state_bnpd: (b, n, p, d), the state before; None for zeros.

    Returns:
        (b, s, n, p) in the dtype of ``x_bsnp``, and the state at the end, (b, n, p, d), fp32 or wider.

    Source:
        arXiv 2405.21060, listing 1.
    """
    length, repeats = x_bsnp.shape[1], x_bsnp.shape[2] // b_bsgd.shape[2]
    dtype = dt_bsn.dtype
    x, b, c = (_chunks(t, dtype) for t in (x_bsnp, *(t.repeat_interleave(repeats, 2) for t in (b_bsgd, c_bsgd))))
    dt = _chunks(dt_bsn.unsqueeze(-1), dtype)
    total = (dt * a_n[:, None, None]).cumsum(-2)
    decay_cc = (total - total.transpose(-1, -2)).tril().exp().tril()
    stepped = dt * x
    within = (c @ b.transpose(-1, -2) * decay_cc) @ stepped
    remaining = (total[..., -1:, :] - total).exp()
    gathered = (stepped * remaining).transpose(-1, -2) @ b
    state = torch.zeros_like(gathered[0]) if state_bnpd is None else state_bnpd.to(dtype)
    outs = []
    for index in range(len(x)):
        outs.append(within[index] + (c[index] * total[index].exp()) @ state.transpose(-1, -2))
        state = total[index, ..., -1:, :].exp() * state + gathered[index]
    y_bsnp = torch.cat(outs, dim=-2)[..., :length, :].transpose(1, 2)
    if skip_n is not None:
        y_bsnp = y_bsnp + skip_n[:, None] * x_bsnp
    return y_bsnp.to(x_bsnp.dtype), state


def _chunks(x_bsnd: Tensor, dtype: torch.dtype) -> Tensor:
    """(l, b, n, c, d), padded at the end with steps of size zero."""
    padded = torch.nn.functional.pad(x_bsnd, (0, 0, 0, 0, 0, -x_bsnd.shape[1] % CHUNK))
    return padded.to(dtype).unflatten(1, (-1, CHUNK)).permute(1, 0, 3, 2, 4)
