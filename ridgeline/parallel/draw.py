"""A picture of a pipeline in text: a row for each rank, a column for each slot of time."""

from bisect import bisect_left, bisect_right

from ridgeline.parallel.actions import Action
from ridgeline.parallel.simulate import Timeline

GAP = " ~ "


def draw(timeline: Timeline, *, width: int = 120) -> str:
    """Draw a simulated schedule.

    Each action shows its name, without the stage where a rank has but one, and fills its slots: a forward with ``-``,
    any other with ``=``; an idle slot is ``.``. Where the ends of the pipeline would not fit so, a slot is a letter:
    ``a``, ``b``, ... for a forward of chunk 0, 1, ..., ``A``, ``B``, ... for a backward. What does not fit even then is
    left out of the steady middle.

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
    cell = len(_name(Action(schedule.num_stages - 1, "F", schedule.num_microbatches - 1), schedule.vpp)) + 1
    named = total * cell <= room or room // cell >= 6 * schedule.pp
    if not named:
        cell = 1
    windows = [range(total)]
    if total * cell > room:
        slots = max(2, (room - len(GAP)) // cell)
        windows = [range((slots + 1) // 2), range(total - slots // 2, total)]

    def text(action: Action, slots: int) -> str:
        fill = "-" if action.kind == "F" else "="
        if named:
            return _name(action, schedule.vpp).ljust(slots * cell - 1, fill) + " "
        letter = chr(ord("a") + action.stage // schedule.pp)
        return slots * (letter if action.kind == "F" else letter.upper())

    def part(pp_rank: int, window: range) -> str:
        starts, ends = timeline.start_us[pp_rank], timeline.end_us[pp_rank]
        cells = [".".ljust(cell)] * len(window)
        seen = range(bisect_left(ends, window.start * slot_us), bisect_right(starts, window.stop * slot_us))
        for index in seen:
            begin, end = round(starts[index] / slot_us), round(ends[index] / slot_us)
            drawn = text(schedule.ranks[pp_rank][index], end - begin)
            for slot in range(max(begin, window.start), min(end, window.stop)):
                cells[slot - window.start] = drawn[(slot - begin) * cell :][:cell]
        return "".join(cells)

    lines = []
    for pp_rank in range(schedule.pp):
        parts = (part(pp_rank, window) for window in windows)
        lines.append(f"{pp_rank:>{digits}} |{GAP.join(parts)}|")
    legend = "" if named else "; a, b, ...: forward of chunk 0, 1, ...; A, B, ...: backward"
    return "\n".join([*lines, f"a slot is {slot_us:.4g} us, {total} in all{legend}"])


def _slot_us(timeline: Timeline) -> float:
    """The shortest action's time, but a quarter of the longest one's at least."""
    rows = zip(timeline.start_us, timeline.end_us, strict=True)
    times = [end - start for starts, ends in rows for start, end in zip(starts, ends, strict=True) if end > start]
    return max(min(times), max(times) / 4) if times else 1.0


def _name(action: Action, vpp: int) -> str:
    return str(action) if vpp > 1 else f"{action.kind}{action.microbatch}"
