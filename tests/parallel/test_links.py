"""Collectives take what their links allow, wherever their group lies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.links import Spread, collective_us, spread_of
from ridgeline.parallel.mesh import Mesh, groups

A2 = cluster_preset("atlas-800t-a2", 4)
A3 = cluster_preset("atlas-900-a3", 4)
KINDS = st.sampled_from(["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "p2p"])


def bandwidth(link):
    return link.bandwidth * link.efficiency


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_in_a_full_mesh_a_gather_takes_one_part_over_one_link(ranks):
    part = 28_000_000
    us = collective_us("all_gather", ranks * part, Spread(1, ranks), A2)
    assert us - A2.intra.latency_us == pytest.approx(part / bandwidth(A2.intra) * 1e6)


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_behind_a_switch_a_gather_takes_all_other_parts_over_one_port(ranks):
    part = 28_000_000
    us = collective_us("all_gather", ranks * part, Spread(1, ranks), A3)
    assert us - A3.intra.latency_us == pytest.approx((ranks - 1) * part / bandwidth(A3.intra) * 1e6)


def test_across_nodes_each_member_carries_its_share():
    total = 8 * 2 * 1_000_000
    us = collective_us("all_gather", total, Spread(2, 8), A2)
    across = total / 8 / 2 / bandwidth(A2.inter) * 1e6
    within = total / 8 / bandwidth(A2.intra) * 1e6
    assert us == pytest.approx(across + within + A2.inter.latency_us + A2.intra.latency_us)


@given(KINDS, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 4), st.sampled_from([1, 2, 4, 8]))
def test_more_bytes_never_take_less(kind, size, more, nodes, per_node):
    spread = Spread(nodes, per_node)
    assert collective_us(kind, size, spread, A2) <= collective_us(kind, size + more, spread, A2)


@given(st.integers(0, 10**9), st.sampled_from([Spread(1, 8), Spread(4, 1), Spread(4, 8)]))
def test_an_all_reduce_is_a_reduce_scatter_and_a_gather(size, spread):
    parts = collective_us("reduce_scatter", size, spread, A2) + collective_us("all_gather", size, spread, A2)
    assert collective_us("all_reduce", size, spread, A2) == pytest.approx(parts)


@given(KINDS, st.integers(0, 10**9))
def test_a_rank_alone_waits_for_nobody(kind, size):
    assert collective_us(kind, size, Spread(1, 1), A2) == 0.0


@pytest.mark.parametrize("axes", ["tp", "dp", "pp", "dp-cp", "etp-ep", "edp", "tp-cp-dp-pp"])
@pytest.mark.parametrize("order", ["tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"])
def test_a_group_lies_where_its_ranks_are(axes, order):
    mesh = Mesh(tp=4, cp=1, dp=4, pp=2, ep=4, etp=1, order=order if axes not in ("etp-ep", "edp") else "tp-cp-ep-dp-pp")
    for ranks in groups(mesh, axes):
        nodes = {rank // 8 for rank in ranks}
        assert spread_of(axes, mesh, A2) == Spread(len(nodes), len(ranks) // len(nodes))
