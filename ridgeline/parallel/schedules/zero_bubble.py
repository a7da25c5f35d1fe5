"""Zero bubble: backwards split in two, so that weight gradients fill what would be waiting.

Only a stage's input gradient keeps the rank before waiting; its weight gradient can come at any later time.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from ridgeline.parallel.actions import Action, Kind
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.one_f_one_b import alternate

DELIVERED, FREE = 0, 1
"""Kinds of events; at one time what arrives comes before what is chosen."""


def zb_h1(*, pp: int, num_microbatches: int) -> Schedule:
    """Holds at most ``pp`` activations a rank, as 1F1B does on its first; its bubble is a third of 1F1B's at F=I=W.

    The order of forwards and input gradients is that of 1F1B. Rank r runs each weight gradient r microbatches after its
    input gradient, which no rank then waits for.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1.

    Source:
        Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 2.3: ``(pp-1)*(F+I-W)`` idle at F=I=W
        and enough microbatches; with W longer than I it is more.

    Example:
        >>> print(zb_h1(pp=2, num_microbatches=3))
        0: 0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2
        1: 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2
    """
    ranks = tuple(tuple(_delayed(pp, stage, num_microbatches)) for stage in range(pp))
    return Schedule(name="zb_h1", vpp=1, num_microbatches=num_microbatches, ranks=ranks)


def _delayed(pp: int, stage: int, num_microbatches: int) -> Iterator[Action]:
    forwards = [Action(stage, "F", microbatch) for microbatch in range(num_microbatches)]
    backwards = [Action(stage, "I", microbatch) for microbatch in range(num_microbatches)]
    for action in alternate(forwards, backwards, warmup=pp - stage - 1):
        yield action
        if action.kind == "I" and action.microbatch >= stage:
            yield Action(stage, "W", action.microbatch - stage)
    for microbatch in range(max(0, num_microbatches - stage), num_microbatches):
        yield Action(stage, "W", microbatch)


def zb_2p(
    *, pp: int, num_microbatches: int, forward: float = 1, input_grad: float = 1, weight_grad: float = 1
) -> Schedule:
    """Holds at most ``2*pp - 1`` activations a rank; at F=I=W no rank waits between its first action and its last.

    Args:
        pp: Pipeline ranks.
        num_microbatches: Any number >= 1; at F=I=W nothing is waited for from ``2*pp - 1`` on.
            At other times the order is greedy, and a rank may wait.
        forward, input_grad, weight_grad: Time of each, in any unit, for which the order is chosen.

    Source:
        Qi et al., arXiv 2401.10241, section 2.3, ZB-H2 and its automatic form ZB-2p.
    """
    durations = {"F": forward, "I": input_grad, "W": weight_grad}
    ranks = _filled(pp, num_microbatches, limit=2 * pp - 1, durations=durations)
    return Schedule(name="zb_2p", vpp=1, num_microbatches=num_microbatches, ranks=ranks)


def _filled(
    pp: int, num_microbatches: int, *, limit: int, durations: dict[str, float]
) -> tuple[tuple[Action, ...], ...]:
    """Run all ranks on a clock and keep what they chose: of what has its input, the first of

    I   the input gradient, which others wait for
    F   a forward, unless the rank holds ``limit`` activations
    W   a weight gradient, which frees one
    """
    ready: list[dict[Kind, deque[int]]] = [{"I": deque(), "F": deque(), "W": deque()} for _ in range(pp)]
    ready[0]["F"].extend(range(num_microbatches))
    chosen: list[list[Action]] = [[] for _ in range(pp)]
    held, busy = [0] * pp, [0.0] * pp
    events: list[tuple[float, int, int, Kind, int]] = [(0.0, FREE, 0, "F", 0)]
    while events:
        time, event, stage, kind, microbatch = heappop(events)
        if event == DELIVERED:
            ready[stage][kind].append(microbatch)
            heappush(events, (time, FREE, stage, kind, microbatch))
            continue
        if time < busy[stage] or (choice := _choice(ready[stage], may_hold=held[stage] < limit)) is None:
            continue
        microbatch = ready[stage][choice].popleft()
        chosen[stage].append(Action(stage, choice, microbatch))
        held[stage] += {"F": 1, "I": 0, "W": -1}[choice]
        busy[stage] = end = time + durations[choice]
        heappush(events, (end, FREE, stage, choice, microbatch))
        if choice == "F" and stage + 1 < pp:
            heappush(events, (end, DELIVERED, stage + 1, "F", microbatch))
        elif choice == "F":
            heappush(events, (end, DELIVERED, stage, "I", microbatch))
        elif choice == "I":
            heappush(events, (end, DELIVERED, stage, "W", microbatch))
            if stage:
                heappush(events, (end, DELIVERED, stage - 1, "I", microbatch))
    return tuple(map(tuple, chosen))


def _choice(ready: dict[Kind, deque[int]], *, may_hold: bool) -> Kind | None:
    return next((kind for kind, waiting in ready.items() if waiting and (kind != "F" or may_hold)), None)
