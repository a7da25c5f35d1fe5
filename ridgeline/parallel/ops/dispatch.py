"""How tokens reach their experts and come back: the collectives of each dispatcher."""

from collections.abc import Iterator

from ridgeline.core.model import Moe
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.words import Comm, Op


def travels(comm: Comm, dispatcher: str) -> bool:
    """Whether a collective moves tokens between experts' ranks, so that others may run beside it."""
    return comm.axes == "etp-ep" if dispatcher == "allgather" else (comm.kind, comm.axes) == ("all_to_all", "ep")


def place_ops(moe: Moe, sizes: Sizes, *, rows: int) -> Iterator[Op]:
    """Finding which of all ranks' tokens chose an expert of this one: passes over who chose what, and their places."""
    group = sizes.etp * sizes.ep
    if sizes.dispatcher == "allgather" and group > 1:
        chosen = sizes.own_tokens * group * moe.experts // sizes.ep
        yield Op("places", "moe", moved_bytes=4 * chosen + 8 * rows)


def dispatcher_comms(moe: Moe, sizes: Sizes) -> tuple[tuple[Comm, ...], tuple[Comm, ...]]:
    """Collectives before and after the experts."""
    group = sizes.etp * sizes.ep
    if group == 1:
        return (), ()
    tokens, hidden = sizes.own_tokens, sizes.hidden * sizes.width
    if sizes.dispatcher == "allgather":
        every = tokens * group
        states, weights = every * hidden, every * moe.experts * 4
        combined = every * sizes.hidden * 4  # summed in the fp32 of the tokens' weights
        return (
            Comm("F", "all_gather", "etp-ep", every * moe.experts),
            Comm("F", "all_gather", "etp-ep", weights),
            Comm("F", "all_gather", "etp-ep", states),
            Comm("B", "reduce_scatter", "etp-ep", weights),
            Comm("B", "reduce_scatter", "etp-ep", states),
        ), (
            Comm("F", "reduce_scatter", "etp-ep", combined),
            Comm("B", "all_gather", "etp-ep", combined),
        )
    rows = int(tokens * moe.topk * moe.experts / (moe.experts + moe.zero_experts))
    if sizes.dispatcher == "alltoall_seq" and sizes.etp > 1:
        return _column_comms(moe, sizes, rows)
    dispatch = [Comm("F", "all_gather", "etp-ep", group * moe.experts * 8)]
    combine = []
    if sizes.ep > 1:
        for phase in ("F", "B"):
            dispatch += [Comm(phase, "all_to_all", "ep", rows * hidden), Comm(phase, "all_to_all", "ep", rows * 4)]
            combine.append(Comm(phase, "all_to_all", "ep", rows * hidden))
    if sizes.etp > 1:
        states, weights = rows * sizes.etp * hidden, rows * sizes.etp * 4
        dispatch += [Comm("F", "all_gather", "etp", states), Comm("F", "all_gather", "etp", weights)]
        dispatch += [Comm("B", "reduce_scatter", "etp", states), Comm("B", "reduce_scatter", "etp", weights)]
        combined = rows * sizes.etp * sizes.hidden * 4  # summed in the fp32 of the tokens' weights
        combine += [Comm("F", "reduce_scatter", "etp", combined), Comm("B", "all_gather", "etp", combined)]
    return tuple(dispatch), tuple(combine)


def _column_comms(moe: Moe, sizes: Sizes, rows: int) -> tuple[tuple[Comm, ...], tuple[Comm, ...]]:
    """Tokens against columns over the experts' tp, which then gathers and scatters columns of what it was sent."""
    etp, tokens, hidden = sizes.etp, sizes.own_tokens, sizes.hidden * sizes.width
    own, weights, whole = tokens * hidden, etp * tokens * moe.experts * 4, etp * rows * hidden
    dispatch = [
        Comm("F", "all_to_all", "etp", own),
        Comm("F", "all_gather", "etp", etp * tokens * moe.experts),
        Comm("F", "all_gather", "etp", weights),
        Comm("F", "all_gather", "etp", whole),
        Comm("B", "reduce_scatter", "etp", whole),
        Comm("B", "reduce_scatter", "etp", weights),
        Comm("B", "all_to_all", "etp", own),
    ]
    combine = [
        Comm("F", "reduce_scatter", "etp", whole),
        Comm("F", "all_to_all", "etp", own),
        Comm("B", "all_to_all", "etp", own),
        Comm("B", "all_gather", "etp", whole),
    ]
    if sizes.ep > 1:
        dispatch.append(Comm("F", "all_gather", "ep", sizes.ep * moe.experts * 8))
        for phase in ("F", "B"):
            dispatch += [
                Comm(phase, "all_to_all", "ep", rows * hidden),
                Comm(phase, "all_to_all", "ep", etp * rows * 4),
            ]
            combine.append(Comm(phase, "all_to_all", "ep", rows * hidden))
    return tuple(dispatch), tuple(combine)
