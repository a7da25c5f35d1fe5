"""A picture of a pipeline in text: a row for each rank, a column for each slot of time."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from types import MappingProxyType

from ridgeline.parallel.actions import KINDS, Action, Kind
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.simulate import Timeline

GAP = " ~ "

FILL: Mapping[Kind, str] = MappingProxyType({"F": "-", "B": "=", "I": "=", "W": ":", "R": "*"})
"""What fills the slots of each kind of action: what others wait for looks solid."""


def draw(timeline: Timeline, *, width: int = 120) -> str:
    """Draw a simulated schedule.

    Each action shows its name, without the stage where a rank has but one, and fills its slots: a forward with ``-``, a
    backward or its input gradients with ``=``, weight gradients with ``:``, a recompute with ``*``; an idle slot is
    ``.``. Where the ends of the pipeline would not fit so, a slot is a letter: ``a``, ``b``, ... for a forward of chunk
    0, 1, ..., ``A``, ``B``, ... for a backward; weight gradients and recomputes stay ``:`` and ``*``. What does not fit
    even then is left out of the steady middle.

    Args:
        timeline: What ``simulate`` gives.
        width: Characters of a line, at most; two slots are drawn in any case.

    Example:
        >>> from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
        >>> from ridgeline.parallel.simulate import simulate
        >>> print(draw(simulate(one_f_one_b(pp=2, num_microbatches=2), stage_us={"F": (1, 1), "B": (2, 2)})))
        0 |F0 F1 .  .  B0=== .  B1=== |
        1 |.  F0 B0=== F1 B1=== .  .  |
        a slot is 1 us, 9 in all
    """
    schedule = timeline.schedule
    slot_us = _slot_us(timeline)
    total = round(timeline.makespan_us / slot_us)
    digits = len(str(schedule.pp - 1))
    room = width - digits - len(" ||")
    last = Action(schedule.num_stages - 1, "F", schedule.num_microbatches - 1)
    cell, legend = len(_name(last, schedule.vpp)) + 1, ""
    if total * cell > room and room // cell < 6 * schedule.pp:
        cell, legend = 1, "; a, b, ...: forward of chunk 0, 1, ...; A, B, ...: backward"
        kinds = {action.kind for actions in schedule.ranks for action in actions}
        legend += "".join(f"; '{FILL[kind]}': {KINDS[kind]}" for kind in ("W", "R") if kind in kinds)
    windows = [range(total)]
    if total * cell > room:
        slots = max(2, (room - len(GAP)) // cell)
        windows = [range((slots + 1) // 2), range(total - slots // 2, total)]
    lines = []
    for pp_rank in range(schedule.pp):
        parts = (_part(timeline, pp_rank, window=window, cell=cell, slot_us=slot_us) for window in windows)
        lines.append(f"{pp_rank:>{digits}} |{GAP.join(parts)}|")
    return "\n".join([*lines, f"a slot is {slot_us:.4g} us, {total} in all{legend}"])


def _slot_us(timeline: Timeline) -> float:
    """The shortest action's time, but a quarter of the longest one's at least."""
    rows = zip(timeline.start_us, timeline.end_us, strict=True)
    times = [end - start for starts, ends in rows for start, end in zip(starts, ends, strict=True) if end > start]
    return max(min(times), max(times) / 4) if times else 1.0


def _part(timeline: Timeline, pp_rank: int, *, window: range, cell: int, slot_us: float) -> str:
    """What one rank does during a window of slots, ``cell`` characters each."""
    schedule, starts, ends = timeline.schedule, timeline.start_us[pp_rank], timeline.end_us[pp_rank]
    cells = [".".ljust(cell)] * len(window)
    for index in range(bisect_left(ends, window.start * slot_us), bisect_right(starts, window.stop * slot_us)):
        begin, end = round(starts[index] / slot_us), round(ends[index] / slot_us)
        text = _text(schedule.ranks[pp_rank][index], schedule, width=(end - begin) * cell, named=cell > 1)
        for slot in range(max(begin, window.start), min(end, window.stop)):
            cells[slot - window.start] = text[(slot - begin) * cell :][:cell]
    return "".join(cells)


def _text(action: Action, schedule: Schedule, *, width: int, named: bool) -> str:
    """One action, as wide as it is long."""
    if named:
        return _name(action, schedule.vpp).ljust(width - 1, FILL[action.kind]) + " "
    if action.kind in "WR":
        return width * FILL[action.kind]
    letter = chr(ord("a") + action.stage // schedule.pp)
    return width * (letter if action.kind == "F" else letter.upper())


def _name(action: Action, vpp: int) -> str:
    return str(action) if vpp > 1 else f"{action.kind}{action.microbatch}"
