"""Errors that say what was wrong, the rule and the way out."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.errors import PlanError, Problem, SpecError, divisors, nearest, one_of


def test_a_problem_reads_path_value_rule_way_out():
    """In that order, and seen from an enclosing spec with its path."""
    problem = Problem("tp", 3, "must divide heads=32", one_of((1, 2, 4)))
    assert str(problem.under("layout")) == "layout.tp=3: must divide heads=32; use 1, 2 or 4"
    assert problem.under("") == problem


@pytest.mark.parametrize("error", [SpecError, PlanError])
def test_an_error_keeps_its_problems_between_processes(error):
    """A rank's error arrives elsewhere whole."""
    problems = (Problem("a", 1, "rule"), Problem("b", None, "is required"))
    again = pickle.loads(pickle.dumps(error(problems)))
    assert type(again) is error
    assert again.problems == problems
    assert str(again) == "a=1: rule\nb=None: is required"


@given(st.integers(1, 2000))
def test_divisors_are_all_that_divide(number):
    """Ascending, and none is left out."""
    assert divisors(number) == tuple(i for i in range(1, number + 1) if number % i == 0)


def test_a_name_far_from_all_gets_the_list_only():
    """No guess where there is no likeness."""
    assert nearest("zzz", ["tp", "pp"]) == "known: pp, tp"


def test_a_long_list_is_cut_to_what_is_near():
    """Seventy names are not spelled out; the near ones come first and the rest is counted."""
    names = [f"qwen-{size}b" for size in range(70)]
    assert nearest("qwen-7", names).startswith("did you mean 'qwen-7b'? known: qwen-7b, ")
    assert nearest("qwen-7", names).endswith(" and 64 more")
    assert nearest("zzz", names) == f"known: {', '.join(sorted(names)[:6])} and 64 more"
