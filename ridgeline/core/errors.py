"""Every error a user can meet: what was wrong, the rule, and the way out.

RidgelineError
    SpecError(ValueError)        one job, file or option is wrong
    PlanError(ValueError)        no plan exists for these specs
    LoweringError(RuntimeError)  this runtime cannot do what the plan says
    DataError(ValueError)        a data file or tokenizer is not what it should be
    CheckpointError(ValueError)  a checkpoint is damaged, foreign or incomplete
"""

from collections.abc import Iterable, Sequence

import attrs

from ridgeline.core.frozen import frozen


@frozen
class Problem:
    """One fault of a job: ``path=value: rule; way_out``."""

    path: str
    value: object
    rule: str
    way_out: str = ""

    def __str__(self) -> str:
        text = f"{self.path}={self.value!r}: {self.rule}"
        return f"{text}; {self.way_out}" if self.way_out else text

    def under(self, prefix: str) -> "Problem":
        """The same fault seen from an enclosing spec."""
        return attrs.evolve(self, path=f"{prefix}.{self.path}" if prefix else self.path)


SHOWN = 24
"""The longest list of names or of faults that a message spells out."""


def few(lines: Sequence[str]) -> list[str]:
    """As many lines as a person reads, and how many there are besides.

    Example:
        >>> few([str(number) for number in range(100)])[-2:]
        ['23', '  and 76 more']
    """
    return list(lines) if len(lines) <= SHOWN else [*lines[:SHOWN], f"  and {len(lines) - SHOWN} more"]


class RidgelineError(Exception):
    """The root of every error that is the user's to mend."""


class _ProblemsError(RidgelineError):
    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self):
        return type(self), (self.problems,)


class SpecError(_ProblemsError, ValueError):
    """One job is wrong; every fault found is in ``problems``."""


class PlanError(_ProblemsError, ValueError):
    """No plan exists for these specs; every rule broken is in ``problems``."""


class LoweringError(RidgelineError, RuntimeError):
    """This runtime cannot do what the plan says."""


class DataError(RidgelineError, ValueError):
    """A data file or a tokenizer is damaged, empty or not what it claims to be."""


class CheckpointError(RidgelineError, ValueError):
    """A checkpoint is damaged, incomplete or of another model."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out for a name that does not exist: a near match and what is known, or what is near if that is long.

    Example:
        >>> nearest("1f1b_interleaved", ["1f1b", "interleaved_1f1b"])
        "did you mean 'interleaved_1f1b'? known: 1f1b, interleaved_1f1b"
    """
    from difflib import get_close_matches  # 11 ms that only a mistake should cost

    names = sorted(known)
    close = get_close_matches(name, names, n=SHOWN // 4, cutoff=0.5)
    shown = names if len(names) <= SHOWN else close or names[: SHOWN // 4]
    rest = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    listed = f"known: {', '.join(shown)}{rest}"
    return f"did you mean {close[0]!r}? {listed}" if close else listed


def divisors(number: int) -> tuple[int, ...]:
    """All positive divisors, ascending.

    Example:
        >>> divisors(12)
        (1, 2, 3, 4, 6, 12)
    """
    small = [i for i in range(1, int(number**0.5) + 1) if number % i == 0]
    return tuple(small + [number // i for i in reversed(small) if i * i != number])


def multiples(size: int, step: int) -> str:
    """The multiples of ``step`` next to ``size``, as a sentence ends with them.

    Example:
        >>> multiples(10, 4)
        'use 8 or 12'
    """
    below, above = size // step * step, -(-size // step) * step
    return one_of((below, above) if below else (above,))


def one_of(values: Sequence[object]) -> str:
    """The values as a sentence ends with them.

    Example:
        >>> one_of((1, 2, 4))
        'use 1, 2 or 4'
    """
    words = [str(value) for value in values]
    return f"use {words[0]}" if len(words) == 1 else f"use {', '.join(words[:-1])} or {words[-1]}"
