"""Calls of flash attention for hypothesis to choose, and what they mean, told by loops over positions."""

import math
from typing import Any

import attrs
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ridgeline.kernels.masks import CAUSAL, FULL, Band, Prefix

LAYOUTS = ("SBH", "BSH", "BSND", "BNSD", "TND")


@attrs.frozen(kw_only=True)
class Call:
    """Sizes as the reference's legend has them, by sequence: of TND any lengths, of other layouts equal ones."""

    layout: str
    s: tuple[int, ...]
    t: tuple[int, ...]
    g: int
    n: int
    d: int
    v: int
    mask: Any
    sinks: bool
    alibi: bool
    softcap: float | None
    dense: Any = None

    def sequences(self) -> list[list[Tensor]]:
        """Queries, keys and values of each sequence: (heads, length, d), float64."""
        generator = torch.Generator().manual_seed(0)
        sizes = [
            ((self.n, s, self.d), (self.g, t, self.d), (self.g, t, self.v)) for s, t in zip(self.s, self.t, strict=True)
        ]
        return [[torch.randn(size, generator=generator, dtype=torch.float64) for size in three] for three in sizes]

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """The three arguments, in the layout, wanting gradients."""
        return tuple(self.laid_out(list(x)).to(dtype).requires_grad_() for x in zip(*self.sequences(), strict=True))

    def laid_out(self, parts: list[Tensor]) -> Tensor:
        """Sequences as one tensor of the layout."""
        if self.layout == "TND":
            return torch.cat([part.transpose(0, 1) for part in parts])
        stacked = torch.stack(parts)
        return {
            "SBH": lambda: stacked.permute(2, 0, 1, 3).flatten(2),
            "BSH": lambda: stacked.transpose(1, 2).flatten(2),
            "BSND": lambda: stacked.transpose(1, 2).contiguous(),
            "BNSD": lambda: stacked,
        }[self.layout]()

    def bias(self) -> tuple[Tensor, Tensor]:
        """Sinks and slopes, (n,) each."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.n, generator=generator), torch.rand(self.n, generator=generator)

    def options(self) -> dict[str, Any]:
        """The named arguments."""
        sinks, slopes = self.bias()
        lengths = {"q_lengths": list(self.s), "kv_lengths": list(self.t)} if self.layout == "TND" else {}
        return {
            "layout": self.layout,
            "heads": self.n,
            "scale": self.d**-0.5,
            "mask": torch.tensor(self.dense) if self.dense is not None else self.mask,
            "sinks_n": sinks.requires_grad_() if self.sinks else None,
            "alibi_n": slopes if self.alibi else None,
            "softcap": self.softcap,
            **lengths,
        }

    def sees(self, sequence: int, query: int, key: int) -> bool:
        """Whether a query, counted among its sequence's queries, sees a key."""
        if self.dense is not None:
            return self.dense[query][key]
        place = query + self.t[sequence] - self.s[sequence]
        if isinstance(self.mask, Prefix):
            return key <= place or key < self.mask.lengths[sequence]
        before, after = self.mask.before, self.mask.after
        return (before is None or key >= place - before) and (after is None or key <= place + after)

    def by_loops(self) -> list[np.ndarray]:
        """The output of each sequence, (n, s, v), one query and head at a time."""
        sinks, slopes = (x.double().numpy() for x in self.bias())
        outs = []
        for index, (q, k, v) in enumerate([[x.numpy() for x in three] for three in self.sequences()]):
            out = np.zeros((self.n, self.s[index], self.v))
            for head in range(self.n):
                group = head // (self.n // self.g)
                for i in range(self.s[index]):
                    seen = [j for j in range(self.t[index]) if self.sees(index, i, j)]
                    scores = [q[head, i] @ k[group, j] / math.sqrt(self.d) for j in seen]
                    if self.softcap is not None:
                        scores = [self.softcap * math.tanh(score / self.softcap) for score in scores]
                    if self.alibi:
                        place = i + self.t[index] - self.s[index]
                        scores = [score - slopes[head] * abs(place - j) for score, j in zip(scores, seen, strict=True)]
                    weights = np.exp(scores)
                    norm = weights.sum() + (np.exp(sinks[head]) if self.sinks else 0.0)
                    out[head, i] = weights @ v[group, seen] / norm
            outs.append(out)
        return outs


@st.composite
def calls(draw: Any, *, softcap: bool = True) -> Call:
    """Calls in which every query sees a key."""
    layout = draw(st.sampled_from(LAYOUTS))
    varlen, count = layout == "TND", draw(st.integers(1, 3))
    alibi = draw(st.booleans())
    if varlen:
        s = (*(draw(st.integers(0, 6)) for _ in range(count - 1)), draw(st.integers(1, 6)))
        t = tuple(length + (0 if alibi or not length else draw(st.integers(0, 3))) for length in s)
    else:
        s = (draw(st.integers(1, 6)),) * count
        t = (s[0] + (0 if alibi else draw(st.integers(0, 3))),) * count
    bands = st.builds(Band, st.none() | st.integers(0, 7), st.none() | st.integers(0, 4))
    masks = st.sampled_from([FULL, CAUSAL]) | bands
    dense = None
    if not varlen:
        prefixes = st.tuples(*[st.integers(t[0] - s[0], t[0])] * count).map(Prefix)
        masks = masks | prefixes
        if draw(st.booleans()):
            rows = st.lists(st.booleans(), min_size=t[0], max_size=t[0]).filter(any)
            dense = draw(st.lists(rows, min_size=s[0], max_size=s[0]))
    g, d = draw(st.integers(1, 2)), draw(st.sampled_from([4, 8]))
    return Call(
        layout=layout,
        s=s,
        t=t,
        g=g,
        n=g * draw(st.integers(1, 3)),
        d=d,
        v=draw(st.sampled_from([4, d])),
        mask=draw(masks),
        sinks=draw(st.booleans()),
        alibi=alibi,
        softcap=draw(st.none() | st.just(2.0)) if softcap else None,
        dense=dense,
    )
