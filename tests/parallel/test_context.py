"""Samples are shared out whole; a ring of exchanges moves and holds what its two parts do, and lies between them."""

from itertools import chain

import attrs
import pytest

from ridgeline.core.layout import Layout
from ridgeline.parallel.context import context_pieces
from ridgeline.parallel.ops import sizes_of
from ridgeline.parallel.ops.context import Spread, context_comms, kv_kept
from ridgeline.parallel.plan import plan
from tests.parallel.examples import dense_model, job_of

MODEL = dense_model(layers=2, hidden=128, heads=16, kv_heads=4)


def job(algorithm: str, *, cp: int = 8, ulysses: int = 1, **changes):
    layout = {"layout__cp": cp, "layout__cp_algorithm": algorithm, "layout__ulysses": ulysses}
    return job_of(MODEL, world_size=cp, batch__seq_len=128, batch__gbs=8, **layout, **changes)


def sent(one, kind: str, axes: str) -> list[int]:
    return [row.size_bytes * row.counts[0] for row in plan(one).collectives if (row.kind, row.axes) == (kind, axes)]


@pytest.mark.parametrize("ulysses", [2, 4])
def test_heads_change_places_within_groups_and_keys_go_round_between_them(ulysses):
    """What an exchange moves does not depend on its group; a ring moves its keys and values a round less one."""
    hybrid, alone = job("hybrid", ulysses=ulysses), job("ulysses", cp=ulysses)
    alone = attrs.evolve(alone, batch=attrs.evolve(alone.batch, seq_len=128 * ulysses // 8))
    assert sent(hybrid, "all_to_all", "ulysses") == sent(alone, "all_to_all", "cp")
    ring = job("ring")
    rounds = (8 // ulysses - 1) / 7
    assert sum(sent(hybrid, "p2p", "ring")) == pytest.approx(rounds * sum(sent(ring, "p2p", "cp")))


def test_too_few_keys_are_repeated_for_an_exchange_and_all_of_them_where_asked():
    def kept(one) -> int:
        return kv_kept(Spread(q=64, k=16, v=16, kv_heads=4), sizes_of(one))

    assert kept(job("hybrid", ulysses=4)) == kept(job("ring")) == 32
    assert kept(job("hybrid", ulysses=4, layout__tp=1, layout__repeat_kv=True)) == 128
    assert kept(job("ulysses")) == 128


def test_a_sequence_on_one_rank_is_not_sent():
    alone = job_of(MODEL, world_size=1, batch__gbs=1)
    assert not list(context_comms(Spread(q=64, k=16, v=16, kv_heads=4), sizes_of(alone)))


@pytest.mark.parametrize(("cp", "ulysses"), [(2, 1), (4, 1), (3, 1), (4, 2), (6, 3), (8, 4), (12, 3)])
@pytest.mark.parametrize("algorithm", ["ring", "ulysses", "hybrid", "kv_allgather"])
def test_positions_belong_to_one_rank_and_rings_have_as_much_to_do(cp, ulysses, algorithm):
    """Every position is one rank's; where keys go round, those that groups of ranks see are as many for each group."""
    inner = ulysses if algorithm == "hybrid" else 1
    layout = Layout(cp=cp, cp_algorithm=algorithm, ulysses=inner)
    positions = [owned(layout, rank, 4 * cp) for rank in range(cp)]
    assert sorted(chain.from_iterable(positions)) == list(range(4 * cp))
    assert all(own == sorted(own) and len(own) == 4 for own in positions)
    if algorithm != "ulysses":
        groups = [positions[first : first + inner] for first in range(0, cp, inner)]
        assert len({sum(map(sum, group)) for group in groups}) == 1


@pytest.mark.parametrize("cp", [2, 4])
def test_positions_are_those_of_megatron_core(ranks, cp):
    """Its own slicing of a batch, for the ring that it has."""
    theirs = ranks.run("tests.parallel.upstream:positions_of_this_rank", cp, 4 * cp)
    assert theirs == [owned(Layout(cp=cp), rank, 4 * cp) for rank in range(cp)]


def owned(layout: Layout, rank: int, seq_len: int) -> list[int]:
    return [position for piece in context_pieces(layout, rank, seq_len=seq_len) for position in range(*piece)]
