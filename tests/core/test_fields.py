"""A spec's own rules: types, bounds, and every fault at once."""

from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.fields import at_least, check_spec, degree, many, real, reals, type_rule


@attrs.frozen(kw_only=True)
class Sample:
    """A field of each kind."""

    count: int = degree()
    maybe: int | None = at_least(2, default=None)
    share: float = real(0.5, above=0.0, maximum=1.0)
    word: Literal["left", "right"] = "left"
    sizes: tuple[int, ...] = many()
    shares: tuple[float, ...] = reals((1.0,))
    flag: bool = False
    __attrs_post_init__ = check_spec

    def _problems(self):
        if self.count > 5 and self.flag:
            yield Problem("flag", self.flag, f"excludes count={self.count}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count=0: must be >= 1"),
        ({"count": True}, "count=True: must be an integer"),
        ({"count": 1.0}, "count=1.0: must be an integer"),
        ({"count": 2**63}, "count=9223372036854775808: must fit in 64 bits"),
        ({"maybe": 1}, "maybe=1: must be >= 2"),
        ({"maybe": "x"}, "maybe='x': must be an integer"),
        ({"share": 0}, "share=0.0: must be > 0.0"),
        ({"share": 1.5}, "share=1.5: must be <= 1.0"),
        ({"share": float("nan")}, "share=nan: must be a finite number"),
        ({"share": True}, "share=True: must be a number"),
        ({"word": "lift"}, "word='lift': unknown; did you mean 'left'? known: left, right"),
        ({"word": 3}, "word=3: must be one of left, right"),
        ({"sizes": 3}, "sizes=3: must be a list, each an integer"),
        ({"sizes": [1, "a"]}, "sizes=(1, 'a'): must be a list, each an integer"),
        ({"shares": [None]}, "shares=(None,): must be a list, each a number"),
        ({"flag": 1}, "flag=1: must be true or false"),
        ({"count": 6, "flag": True}, "flag=True: excludes count=6"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_rule(values, message):
    """The error is one line, path=value: rule."""
    with pytest.raises(SpecError) as caught:
        Sample(**values)
    assert str(caught.value) == message


def test_all_bad_fields_of_a_spec_are_reported_together():
    """Nothing stops at the first fault."""
    with pytest.raises(SpecError) as caught:
        Sample(count=0, share=2, word="up", sizes=None)
    assert [problem.path for problem in caught.value.problems] == ["count", "share", "word", "sizes"]


@given(st.integers(1, 9), st.lists(st.integers(-(2**63) + 1, 2**63 - 1), max_size=3))
def test_what_is_given_is_kept_or_made_canonical(number, sizes):
    """Lists become tuples and whole numbers floats, so that equal specs read equal; all else is kept as it is."""
    sample = Sample(count=number, share=1, sizes=sizes, shares=[number])
    assert (sample.count, sample.sizes, sample.shares) == (number, tuple(sizes), (float(number),))
    assert isinstance(sample.share, float)
    assert isinstance(sample.shares[0], float)


def test_a_union_takes_each_of_its_members():
    """Each alternative fits, and the rule names them all otherwise."""
    assert type_rule(3, int | str) is None
    assert type_rule("a", int | str) is None
    assert type_rule(2.5, int | str) == "must be an integer or text"
