"""Tokens are drawn from the distribution that was asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.apps.runtime.next_token import Sampling, choose_token, kept
from ridgeline.core.errors import SpecError

logits = st.lists(st.floats(-5, 5), min_size=2, max_size=12).map(torch.tensor)


@settings(deadline=None)
@given(logits)
def test_greedy_takes_the_likeliest(logits_v: torch.Tensor) -> None:
    """Temperature 0, and the single likeliest of any temperature, are the maximum."""
    generator = torch.Generator()
    assert choose_token(logits_v, Sampling(), generator) == int(logits_v.argmax())
    one = Sampling(temperature=2.0, top_k=1)
    assert logits_v[choose_token(logits_v, one, generator)] == logits_v.max()


@settings(deadline=None)
@given(logits, st.integers(1, 12), st.floats(0.01, 1.0))
def test_what_is_kept(logits_v: torch.Tensor, top_k: int, top_p: float) -> None:
    """The likeliest stays; as few stay as reach top_p of those that top_k allows; what is left out is less likely."""
    left = kept(logits_v, Sampling(top_k=top_k, top_p=top_p)).isfinite()
    allowed = kept(logits_v, Sampling(top_k=top_k))
    probabilities = allowed.softmax(-1).double()
    assert left[logits_v.argmax()]
    assert probabilities[left].sum() >= top_p - 1e-5
    if left.sum() > 1:
        assert probabilities[left].sum() - probabilities[left].min() < top_p + 1e-5
    if not left.all():
        assert logits_v[left].min() >= logits_v[~left].max()


def test_draws_follow_the_probabilities() -> None:
    """Frequencies of many draws are the softmax at the temperature, and a seed repeats them."""
    logits_v, generator = torch.tensor([0.0, 1.0, 2.0]), torch.Generator().manual_seed(1)
    sampling = Sampling(temperature=0.5)
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[choose_token(logits_v, sampling, generator)] += 1
    # 4 standard deviations of a share from 4000 draws are at most 0.032.
    assert torch.allclose(counts / 4000, (logits_v / 0.5).softmax(-1), atol=0.032)


def test_a_seed_repeats_its_draws() -> None:
    """Equal seeds draw equal tokens."""
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    sampling = Sampling(temperature=1.0)
    draws = [[choose_token(torch.zeros(50), sampling, generator) for _ in range(20)] for generator in (one, other)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"temperature": -1}, r"temperature=-1.0: must be >= 0"),
        ({"top_p": 0}, r"top_p=0.0: must be > 0"),
        ({"top_k": 0}, r"top_k=0: must be >= 1"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, float], fault: str) -> None:
    """A setting out of its range is named with its value."""
    with pytest.raises(SpecError, match=fault):
        Sampling(**fields)
