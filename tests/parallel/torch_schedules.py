"""The schedules of torch.distributed.pipelining, in our words."""

from typing import Any


def rows_of(schedule: type[Any], *, pp: int, num_microbatches: int, chunks: int = 2) -> str:
    """The order of a schedule class of torch: its table is computed without stages, devices or process groups."""
    made = schedule.__new__(schedule)
    made.pp_group_size, made._n_microbatches = pp, num_microbatches
    made.n_local_stages, made.num_stages = chunks, chunks * pp
    made.number_of_rounds = max(1, num_microbatches // pp)
    made.microbatches_per_round = num_microbatches // made.number_of_rounds
    made.use_full_backward = False
    rows = [made._calculate_single_rank_operations(rank) for rank in range(pp)]
    words = [[one for action in row if action for one in (action.sub_actions or (action,))] for row in rows]
    return "\n".join(f"{rank}: {' '.join(map(str, row))}" for rank, row in enumerate(words))
