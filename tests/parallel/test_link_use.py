"""What collectives put on links: every byte that must be sent is, on the links that lie between the ranks."""

import itertools
from fractions import Fraction

import pytest

from ridgeline.core.transforms import with_layout
from ridgeline.models.jobs import preset
from ridgeline.parallel.link_use import link_uses, sent_bytes
from ridgeline.parallel.links import Spread, collective_us
from ridgeline.parallel.plan import plan

SPREADS = [Spread(nodes, each) for nodes, each in itertools.product((1, 2, 3), (1, 2, 8))]


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_no_byte_is_lost(spread):
    """A rank sends what the others lack: counted pair by pair for an all-to-all, as a share for the rest."""
    nodes, each = spread
    size = 720_000 * spread.size
    ranks = [(node, place) for node in range(nodes) for place in range(each)]
    others = ranks[1:]
    near = sum(node == ranks[0][0] for node, _ in others)
    share = size // spread.size
    assert sent_bytes("all_to_all", size, spread) == (near * share, (len(others) - near) * share)
    lacking = size * Fraction(spread.size - 1, spread.size)
    assert sum(sent_bytes("all_gather", size, spread)) == lacking
    assert sent_bytes("reduce_scatter", size, spread) == sent_bytes("all_gather", size, spread)
    assert sum(sent_bytes("all_reduce", size, spread)) == 2 * lacking
    assert (sent_bytes("all_gather", size, spread)[1] == 0) == (nodes == 1)


def planned(nodes, **layout):
    return plan(with_layout(**layout)(preset("llama2-70b", nodes=nodes)))


def uses_of(made):
    return link_uses(made.job, mesh=made.mesh, stages=made.stages, collectives=made.collectives)


def test_each_collective_is_told_with_its_time():
    """In the plan's order; a group within a node sends nothing across, and takes its time as often as it runs."""
    made = planned(4, tp=8, pp=4, vpp=2, sp=True)
    uses = uses_of(made)
    assert tuple(use.collective for use in uses) == made.collectives
    tp = [use for use in uses if use.collective.axes == "tp" and use.collective.phase == "forward"]
    assert tp
    for use in tp:
        row = use.collective
        assert use.spread == Spread(1, 8)
        assert use.inter_bytes == 0
        assert use.us == pytest.approx(
            max(row.counts) * collective_us(row.kind, row.size_bytes, use.spread, made.job.cluster)
        )


def test_transfers_between_stages_cross_where_stages_do():
    """Where tp fills a node each hop leaves it; with two stages a node the worst one does; within one none does."""
    (whole,) = (use for use in uses_of(planned(4, tp=8, pp=4)) if use.collective.why == "activations to the next stage")
    row = whole.collective
    assert (whole.intra_bytes, whole.inter_bytes) == (0, row.size_bytes * max(row.counts))
    (half,) = (use for use in uses_of(planned(4, tp=4, pp=8)) if use.collective.why == "activations to the next stage")
    assert (half.intra_bytes, half.inter_bytes) == (0, half.collective.size_bytes * max(half.collective.counts))
    (inside,) = (
        use for use in uses_of(planned(1, tp=2, pp=4)) if use.collective.why == "gradients to the previous stage"
    )
    assert inside.inter_bytes == 0 < inside.intra_bytes
