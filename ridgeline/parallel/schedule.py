"""A pipeline schedule: what each pipeline rank does, in order."""

import itertools
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import attrs

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.frozen import frozen
from ridgeline.parallel.actions import Action, parse_action


@frozen(kw_only=True)
class Schedule:
    """A tuple of actions for each pipeline rank; prints as a table that ``parse_schedule`` reads.

    Attributes:
        name: What its generator is called.
        vpp: Chunks per rank.
        num_microbatches: Microbatches of one step; of slices, where a microbatch is sent slice by slice.
        ranks: For each pipeline rank its actions in the order in which it runs them.
        pairs: For each pipeline rank the places of forwards that may run together with the backward after them, which
            prints as ``0F3+7B1``; empty where no rank has any.
        slices: Slices of each sequence: actions ``k*slices`` .. ``(k+1)*slices - 1`` are those of microbatch k, whose
            forwards go in order and whose backwards go back, since attention looks at the slices before.
    """

    name: str
    vpp: int
    num_microbatches: int
    ranks: tuple[tuple[Action, ...], ...]
    pairs: tuple[frozenset[int], ...] = ()
    slices: int = 1

    @property
    def pp(self) -> int:
        """Pipeline ranks."""
        return len(self.ranks)

    @property
    def num_stages(self) -> int:
        """``pp*vpp``."""
        return self.pp * self.vpp

    def pairs_of(self, pp_rank: int) -> frozenset[int]:
        """The places at which pairs of a rank begin."""
        return self.pairs[pp_rank] if self.pairs else frozenset()

    def __str__(self) -> str:
        return "\n".join(_table([_words(self, pp_rank) for pp_rank in range(self.pp)]))


def parse_schedule(text: str, *, name: str, slices: int = 1) -> Schedule:
    """The schedule that prints so: a line for each pipeline rank, ``0: 0F0 0F1 0B0 ...``.

    Raises:
        SpecError: A word is no action, or the stages are no whole number of chunks a rank.

    Example:
        >>> print(parse_schedule("0: 0F0 0F1 0B0 0B1 / 1: 1F0 1B0 1F1 1B1".replace("/", "\\n"), name="mine"))
        0: 0F0 0F1 0B0 0B1
        1: 1F0 1B0 1F1 1B1
    """
    rows = [line.partition(":")[2] for line in text.strip().splitlines()]
    ranks = tuple(tuple(map(parse_action, row.replace("+", " ").split())) for row in rows)
    pairs = tuple(map(_pairs, rows))
    actions = [action for row in ranks for action in row]
    if not actions:
        raise SpecError(Problem("schedule", text, "holds no action", "write a line for each rank, as '0: 0F0 0B0'"))
    num_stages = 1 + max(action.stage for action in actions)
    if num_stages % len(ranks):
        rule = f"has {num_stages} stages, no multiple of its {len(ranks)} ranks"
        raise SpecError(Problem("schedule", text, rule, "write a line for each rank, and every stage"))
    num_microbatches = 1 + max(action.microbatch for action in actions)
    return Schedule(
        name=name,
        vpp=num_stages // len(ranks),
        num_microbatches=num_microbatches,
        ranks=ranks,
        pairs=pairs if any(pairs) else (),
        slices=slices,
    )


def forward_only(schedule: Schedule) -> Schedule:
    """The forwards alone, in the same order, as an evaluation runs them."""
    ranks = tuple(tuple(action for action in actions if action.kind == "F") for actions in schedule.ranks)
    return attrs.evolve(schedule, ranks=ranks, pairs=())


def problem_at(schedule: Schedule, *, pp_rank: int, index: int, rule: str) -> Problem:
    """The rule that one action breaks, with the actions of all ranks about it; it stands in brackets."""
    begin, end = max(0, index - 5), index + 6
    rows = [list(map(str, actions[begin:end])) for actions in schedule.ranks]
    rows[pp_rank][index - begin] = f"[{rows[pp_rank][index - begin]}]"
    grid = "\n".join(f"    {line}" for line in _table(rows))
    action = str(schedule.ranks[pp_rank][index])
    return Problem(f"schedule.ranks[{pp_rank}][{index}]", action, f"{rule}\n{grid}")


def _words(schedule: Schedule, pp_rank: int) -> list[str]:
    """The actions of a rank, a pair as one word."""
    pairs = schedule.pairs_of(pp_rank)
    words: list[str] = []
    for index, action in enumerate(schedule.ranks[pp_rank]):
        if index - 1 in pairs:
            words[-1] += f"+{action}"
        else:
            words.append(str(action))
    return words


def _pairs(row: str) -> frozenset[int]:
    """The places of the actions that a ``+`` follows."""
    sizes = [word.count("+") for word in row.split()]
    places = itertools.accumulate((size + 1 for size in sizes), initial=0)
    return frozenset(first + offset for first, size in zip(places, sizes, strict=False) for offset in range(size))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    digits = len(str(len(rows) - 1))
    for pp_rank, row in enumerate(rows):
        yield f"{pp_rank:>{digits}}: {' '.join(map(str.ljust, row, widths))}".rstrip()
