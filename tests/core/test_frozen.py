"""Values whose equality, hash and text are shared."""

import copy
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Ours:
    a: int
    b: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class Theirs:
    a: int
    b: tuple[int, ...] = ()


@frozen
class Positional:
    a: int
    b: int = 2

    def __str__(self):
        return "told"


PAIRS = st.tuples(st.integers(0, 2), st.tuples(st.integers(0, 1)))


@given(PAIRS, PAIRS)
def test_they_compare_as_attrs_makes_them(left, right):
    """Equal exactly when attrs' own are, and then with equal hashes."""
    ours = [Ours(a=a, b=b) for a, b in (left, right)]
    theirs = [Theirs(a=a, b=b) for a, b in (left, right)]
    assert (ours[0] == ours[1]) == (theirs[0] == theirs[1])
    assert (ours[0] != ours[1]) == (theirs[0] != theirs[1])
    assert len(set(ours)) == len(set(theirs))


def test_they_print_as_attrs_makes_them():
    """A text of their own is kept."""
    assert repr(Ours(a=1, b=(2,))) == "Ours(a=1, b=(2,))" == repr(Theirs(a=1, b=(2,))).replace("Theirs", "Ours")
    assert str(Positional(1)) == "told"
    assert repr(Positional(1)) == "Positional(a=1, b=2)"


def test_classes_are_never_equal_to_others():
    """Not even with the same fields."""
    assert Ours(a=1) != Theirs(a=1)
    assert Ours(a=1) != (1, ())


def test_they_are_frozen_attrs_classes():
    """Nothing is assigned; evolve, fields, copy and pickle work."""
    value = Ours(a=1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value.a = 2
    assert attrs.evolve(value, a=3) == Ours(a=3)
    assert [field.name for field in attrs.fields(Ours)] == ["a", "b"]
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
