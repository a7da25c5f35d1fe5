"""Ranks, coordinates and groups of the mesh, against laws and against Megatron-core."""

import itertools
import math
import time
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import SpecError, divisors
from ridgeline.parallel.mesh import (
    DENSE_AXES,
    EXPERT_AXES,
    ORDER_AXES,
    PROCESS_GROUPS,
    ExpertCoords,
    Mesh,
    RankCoords,
    embedding_ranks,
    expert_coords,
    group_of,
    groups,
    position_embedding_ranks,
    rank_coords,
    rank_of,
)
from tests.pool import Pool

QUIET = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), database=None)
TOKENS = {
    "-".join(axes): axes
    for numbering in (DENSE_AXES, EXPERT_AXES)
    for size in (1, 2, 3, 4)
    for axes in itertools.combinations(numbering, size)
}


PP_LAST = st.permutations(ORDER_AXES[:4]).map(lambda axes: "-".join((*axes, "pp")))
ANY_ORDER = st.permutations(ORDER_AXES).flatmap(
    lambda axes: st.sampled_from((5, 5, 5, 4, 3)).map(lambda size: "-".join(axes[:size]))
)


@st.composite
def degrees(draw: st.DrawFn, orders: st.SearchStrategy[str]) -> dict[str, Any]:
    """Degrees of up to 48 ranks that fit each other, and an order."""
    chosen = {axis: draw(st.sampled_from((1, 1, 2, 3, 4))) for axis in DENSE_AXES}
    while math.prod(chosen.values()) > 48:
        chosen[max(chosen, key=lambda axis: chosen[axis])] = 1
    ranks = chosen["tp"] * chosen["cp"] * chosen["dp"]
    chosen["etp"] = draw(st.sampled_from(divisors(ranks)))
    chosen["ep"] = draw(st.sampled_from(divisors(ranks // chosen["etp"])))
    return {**chosen, "order": draw(orders)}


def mesh_or_none(chosen: dict[str, Any]) -> Mesh | None:
    try:
        return Mesh(**chosen)
    except SpecError:
        return None


meshes = degrees(PP_LAST).map(lambda chosen: Mesh(**chosen))


@QUIET
@given(meshes)
def test_coordinates_are_a_numbering(mesh: Mesh) -> None:
    """No two ranks share coordinates, none is left out, and a rank is found again from its coordinates."""
    for coords_of in (rank_coords, expert_coords):
        coords = [coords_of(rank, mesh) for rank in range(mesh.world_size)]
        assert len(set(coords)) == mesh.world_size
        assert [rank_of(place, mesh) for place in coords] == list(range(mesh.world_size))


@QUIET
@given(meshes, st.sampled_from(sorted(TOKENS)))
def test_groups_partition_the_world(mesh: Mesh, axes: str) -> None:
    """Every rank is in one group, whose members all see the same group and differ along its axes only."""
    all_groups = groups(mesh, axes)
    assert sorted(itertools.chain.from_iterable(all_groups)) == list(range(mesh.world_size))
    coords_of = rank_coords if set(TOKENS[axes]) <= set(DENSE_AXES) else expert_coords
    for group in all_groups:
        assert len(group) == math.prod(getattr(mesh, axis) for axis in TOKENS[axes])
        assert all(group_of(rank, mesh, axes) == group for rank in group)
        numbering = DENSE_AXES if coords_of is rank_coords else EXPERT_AXES
        for axis in set(numbering) - set(TOKENS[axes]):
            assert len({getattr(coords_of(rank, mesh), f"{axis}_rank") for rank in group}) == 1


def test_default_order_is_the_documented_one() -> None:
    """tp varies fastest, then cp, dp and pp; among experts etp, then ep, edp and pp."""
    mesh = Mesh(tp=2, cp=2, dp=3, pp=2, etp=1, ep=4)
    for rank in range(mesh.world_size):
        c = rank_coords(rank, mesh)
        assert rank == c.tp_rank + mesh.tp * (c.cp_rank + mesh.cp * (c.dp_rank + mesh.dp * c.pp_rank))
        e = expert_coords(rank, mesh)
        assert rank == e.etp_rank + mesh.etp * (e.ep_rank + mesh.ep * (e.edp_rank + mesh.edp * e.pp_rank))


def test_order_of_axes_in_a_token_means_nothing() -> None:
    """``cp-dp`` is the group that ``dp-cp`` is."""
    mesh = Mesh(tp=2, cp=2, dp=2)
    assert group_of(3, mesh, "cp-dp") == group_of(3, mesh, "dp-cp") == (1, 3, 5, 7)


def test_one_rank_of_a_huge_world_is_found_without_counting_it() -> None:
    """A thousand lookups among 10^6 ranks take less than one pass over the world would."""
    mesh = Mesh(tp=8, cp=4, dp=2048, pp=16, ep=64)
    began = time.process_time()
    for rank in range(0, mesh.world_size, mesh.world_size // 1000):
        assert rank in group_of(rank, mesh, "tp")
        assert rank_coords(rank, mesh).tp_rank == rank % 8
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"tp": 0, "pp": -1}, r"tp=0: must be >= 1\npp=-1: must be >= 1"),
        ({"dp": 4, "ep": 3}, r"etp\*ep=3: must divide tp\*cp\*dp=4; use 1, 2 or 4"),
        ({"tp": 2, "order": "cp-dp"}, "order='cp-dp': must name every axis of a degree > 1; tp=2 is left out; add tp"),
        ({"order": "tp-dq"}, "order='tp-dq': axis 'dq' is unknown; did you mean 'dp'"),
        ({"order": "tp-dp-tp"}, "order='tp-dp-tp': axis 'tp' appears twice; name it once"),
        ({"pp": 2, "tp": 2, "order": "tp-pp-dp"}, "numbers the pipelines .* differently.*; end it in pp"),
    ],
)
def test_impossible_meshes_say_why(fields: dict[str, Any], line: str) -> None:
    """A mesh that cannot be is refused with every reason."""
    with pytest.raises(SpecError, match=line):
        Mesh(**fields)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda mesh: rank_coords(8, mesh), r"rank=8: must lie in 0 \.\. world_size-1=7"),
        (lambda mesh: group_of(-1, mesh, "tp"), "rank=-1"),
        (
            lambda mesh: groups(mesh, "tp-ep"),
            "axes='tp-ep': must join different axes, all of tp-cp-dp-pp or all of etp",
        ),
        (lambda mesh: groups(mesh, "tp-tp"), "axes='tp-tp'"),
        (
            lambda mesh: rank_of(RankCoords(tp_rank=2, cp_rank=0, dp_rank=0, pp_rank=0), mesh),
            r"tp_rank=2: must lie in 0 \.\. 1",
        ),
        (lambda mesh: rank_of(ExpertCoords(etp_rank=0, ep_rank=0, edp_rank=4, pp_rank=0), mesh), "edp_rank=4"),
    ],
)
def test_lookups_outside_the_mesh_say_why(call: Any, line: str) -> None:
    """A rank, coordinate or axis that is not there is named."""
    with pytest.raises(SpecError, match=line):
        call(Mesh(tp=2, dp=2, pp=2))


@QUIET
@given(meshes, st.data())
def test_a_ring_of_exchanges_parts_cp_as_megatrons_hierarchical_groups_do(mesh: Mesh, data: st.DataObject) -> None:
    """Neighbours exchange, and those at one place of every exchange are a ring: rows and columns of cp's ranks.

    Source:
        megatron-core 0.16.1, parallel_state.py, ``create_hierarchical_groups`` of sizes (ulysses, ring).
    """
    parted = attrs.evolve(mesh, ulysses=data.draw(st.sampled_from(divisors(mesh.cp))))
    for cp_group in groups(mesh, "cp"):
        table = np.array(cp_group).reshape(parted.ring, parted.ulysses)
        for (row, column), rank in np.ndenumerate(table):
            assert group_of(int(rank), parted, "ulysses") == tuple(table[row])
            assert group_of(int(rank), parted, "ring") == tuple(table[:, column])


def test_groups_are_those_of_megatron_rank_generator(ranks: Pool) -> None:
    """For random degrees and orders every group of every combination of axes is Megatron-core's, in its order."""
    ranks.run(compare_with_rank_generator, 1)


def compare_with_rank_generator() -> None:
    from megatron.core.parallel_state import RankGenerator

    @QUIET
    @given(meshes, st.booleans())
    def compare(mesh: Mesh, expert: bool) -> None:
        if expert:
            theirs = RankGenerator(tp=mesh.etp, ep=mesh.ep, dp=mesh.edp, pp=mesh.pp, cp=1, order=mesh.order)
        else:
            theirs = RankGenerator(tp=mesh.tp, ep=1, dp=mesh.dp, pp=mesh.pp, cp=mesh.cp, order=mesh.order)
        for token, axes in TOKENS.items():
            if set(axes) <= set(EXPERT_AXES if expert else DENSE_AXES):
                token_of_megatron = token.replace("etp", "tp").replace("edp", "dp")
                assert [list(group) for group in groups(mesh, token)] == theirs.get_ranks(token_of_megatron)

    compare()


def test_mesh_accepts_what_megatron_initialises_and_its_groups(ranks: Pool) -> None:
    """Random degrees and orders are refused by both or by neither, and each rank gets the same groups from both."""
    accepted, refused = ranks.run(compare_with_initialize_model_parallel, 1)[0]
    assert accepted > 10
    assert refused > 5


def compare_with_initialize_model_parallel() -> tuple[int, int]:
    from torch import distributed

    distributed.destroy_process_group()
    verdicts = []

    @settings(QUIET, max_examples=60, derandomize=True)
    @given(degrees(ANY_ORDER), st.randoms(use_true_random=False))
    def compare(chosen: dict[str, Any], random: Any) -> None:
        mesh = mesh_or_none(chosen)
        world_size = chosen["tp"] * chosen["cp"] * chosen["dp"] * chosen["pp"]
        rank = random.randrange(world_size)
        theirs = megatron_groups(rank, world_size, chosen)
        assert (mesh is None) == (theirs is None)
        if mesh is not None:
            pipeline = group_of(rank, mesh, "pp")
            ours = {name: group_of(rank, mesh, axes) for name, axes in PROCESS_GROUPS.items()}
            ends, first = embedding_ranks(pipeline), position_embedding_ranks(pipeline)
            ours |= {"embd": ends if rank in ends else (), "pos_embd": first if rank in first else ()}
            assert ours == theirs
        verdicts.append(mesh is not None)

    compare()
    return verdicts.count(True), verdicts.count(False)


def megatron_groups(rank: int, world_size: int, chosen: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The ranks of each process group that Megatron-core forms for one rank; None when it refuses."""
    from megatron.core import parallel_state as state
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        state.initialize_model_parallel(
            chosen["tp"],
            chosen["pp"],
            context_parallel_size=chosen["cp"],
            expert_model_parallel_size=chosen["ep"],
            expert_tensor_parallel_size=chosen["etp"],
            order=chosen["order"],
            create_gloo_process_groups=False,
        )
        formed = {
            "tp": state.get_tensor_model_parallel_group(),
            "cp": state.get_context_parallel_group(),
            "dp": state.get_data_parallel_group(),
            "pp": state.get_pipeline_model_parallel_group(),
            "mp": state.get_model_parallel_group(),
            "tp_cp": state.get_tensor_and_context_parallel_group(),
            "dp_cp": state.get_data_parallel_group(with_context_parallel=True),
            "tp_dp_cp": state.get_tensor_and_data_parallel_group(with_context_parallel=True),
            "ep": state.get_expert_model_parallel_group(),
            "expt_tp": state.get_expert_tensor_parallel_group(),
            "expt_dp": state.get_expert_data_parallel_group(),
            "tp_ep": state.get_expert_tensor_and_model_parallel_group(),
            "tp_ep_pp": state.get_expert_tensor_model_pipeline_parallel_group(),
            "embd": state.get_embedding_group(check_initialized=False),
            "pos_embd": state.get_position_embedding_group(check_initialized=False),
        }
        return {
            name: tuple(distributed.get_process_group_ranks(group)) if group is not None else ()
            for name, group in formed.items()
        }
    except (AssertionError, RuntimeError):
        return None
    finally:
        state.destroy_model_parallel()
        distributed.destroy_process_group()
