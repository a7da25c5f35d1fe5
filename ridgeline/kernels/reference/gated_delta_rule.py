"""The gated delta rule of linear attention, chunk by chunk, in plain torch.

Legend: ``b`` = batch, ``s`` = sequence, ``n`` = heads, ``k`` = head_dim of queries and keys, ``v`` = of values;
``c`` = positions of a chunk, ``l`` = chunks.
"""

import torch
from torch import Tensor

CHUNK = 64


def gated_delta_rule(
    query_bsnk: Tensor,
    key_bsnk: Tensor,
    value_bsnv: Tensor,
    *,
    log_decay_bsn: Tensor,
    beta_bsn: Tensor,
    scale: float,
    state_bnkv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A memory that decays, and into which each key writes the part of its value that it does not hold yet.

    ``S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  out = S^T (scale * q)``, position after position.

    Args:
        query_bsnk: (b, s, n, k), float, usually of length one.
        key_bsnk: The same.
        value_bsnv: (b, s, n, v), the same dtype.
        log_decay_bsn: (b, s, n), fp32 or wider, <= 0: g.
        beta_bsn: (b, s, n), 0 .. 1.
        scale: Of the queries, usually ``k ** -0.5``.
        state_bnkv: (b, n, k, v), what the memory holds at first; None for nothing.

    Returns:
        (b, s, n, v) in the dtype of the values, and the memory at the end, (b, n, k, v), fp32 or wider.

    Source:
        arXiv 2412.06464, section 3.3 and appendix A; arXiv 2406.06484 for the chunks.
    """
    length = query_bsnk.shape[1]
    q, k, v = (_chunks(x, log_decay_bsn.dtype) for x in (query_bsnk * scale, key_bsnk, value_bsnv))
    g, beta = (_chunks(x.unsqueeze(-1), log_decay_bsn.dtype) for x in (log_decay_bsn, beta_bsn))
    total = g.cumsum(-2)
    decay_cc = (total - total.transpose(-1, -2)).tril().exp().tril()
    # What each position reads back of what earlier ones of its chunk wrote: a triangular system.
    reads_cc = (beta * (k @ k.transpose(-1, -2)) * decay_cc).tril(-1)
    identity = torch.eye(reads_cc.shape[-1], dtype=reads_cc.dtype, device=reads_cc.device)
    solved = torch.linalg.solve_triangular(
        identity + reads_cc, torch.cat((beta * v, beta * total.exp() * k), -1), upper=False, unitriangular=True
    )
    fresh, from_state = solved.split((v.shape[-1], k.shape[-1]), -1)
    attention_cc = (q @ k.transpose(-1, -2) * decay_cc).tril()
    remaining = (total[..., -1:, :] - total).exp()
    state = v.new_zeros(*v.shape[1:3], k.shape[-1], v.shape[-1]) if state_bnkv is None else state_bnkv.to(v.dtype)
    outs = []
    for index in range(len(q)):
        written = fresh[index] - from_state[index] @ state
        outs.append((q[index] * total[index].exp()) @ state + attention_cc[index] @ written)
        kept = total[index, ..., -1:, :].exp() * state
        state = kept + (k[index] * remaining[index]).transpose(-1, -2) @ written
    out_bnsv = torch.cat(outs, dim=-2)[..., :length, :]
    return out_bnsv.transpose(1, 2).to(value_bsnv.dtype), state


def _chunks(x_bsnd: Tensor, dtype: torch.dtype) -> Tensor:
    """(l, b, n, c, d), padded at the end with positions that write nothing and do not decay."""
    padded = torch.nn.functional.pad(x_bsnd, (0, 0, 0, 0, 0, -x_bsnd.shape[1] % CHUNK))
    return padded.to(dtype).unflatten(1, (-1, CHUNK)).permute(1, 0, 3, 2, 4)
