"""Stage maps: every layer owned once, in order, where Megatron-core puts it too."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping

from ridgeline.core.errors import PlanError
from ridgeline.parallel.stages import StageMap, megatron_layout, plan_stages, stage_of_layer
from tests.pool import Pool

QUIET = settings(deadline=None, max_examples=60, database=None)


@st.composite
def divisions(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of ``plan_stages`` that it accepts: even, with noop layers, or uneven with empty stages."""
    pp = draw(st.integers(1, 5))
    vpp = draw(st.integers(1, 3)) if pp > 1 else 1
    size, mtp = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    total = pp * vpp * size
    kind = draw(st.sampled_from(("even", "noop", "uneven")))
    fixed = {"pp": pp, "vpp": vpp, "mtp": mtp}
    if kind == "even":
        return {"num_layers": total, **fixed}
    if kind == "noop":
        noop_layers = draw(st.sets(st.integers(0, total - 1), max_size=size - 1))
        return {"num_layers": total - len(noop_layers), "noop_layers": tuple(noop_layers), **fixed}
    stages = tuple(draw(st.lists(st.integers(0, 4), min_size=pp * vpp, max_size=pp * vpp)))
    counts = [max(count, 1) if 0 < i < pp - 1 else count for i, count in enumerate(stages)]
    return {"num_layers": sum(counts), "stages": tuple(counts), **fixed}


def built(division: dict[str, Any]) -> StageMap:
    return plan_stages(division["num_layers"], **{k: v for k, v in division.items() if k != "num_layers"})


@QUIET
@given(divisions())
def test_every_layer_has_one_stage(division: dict[str, Any]) -> None:
    """In stage order the layers count from 0 to num_layers-1, and each is found in its stage."""
    stage_map = built(division)
    assert list(itertools.chain.from_iterable(stage_map.layers)) == list(range(division["num_layers"]))
    assert len(stage_map.layers) == len(stage_map.noop_layers) == stage_map.num_stages
    for stage, layers in enumerate(stage_map.layers):
        assert all(stage_of_layer(stage_map, layer) == stage for layer in layers)


@QUIET
@given(divisions())
def test_noop_layers_fill_what_layers_leave(division: dict[str, Any]) -> None:
    """Without a list of stages all stages are equally long, noop layers counted, and each noop is where it was put."""
    if "stages" not in division:
        stage_map = built(division)
        size = len(stage_map.layers[0]) + len(stage_map.noop_layers[0])
        for stage, (layers, noops) in enumerate(zip(stage_map.layers, stage_map.noop_layers, strict=True)):
            assert len(layers) + len(noops) == size
            assert all(noop // size == stage for noop in noops)
        assert sorted(itertools.chain(*stage_map.noop_layers)) == sorted(division.get("noop_layers", ()))


@pytest.mark.parametrize("style", ["loop", "v"])
@pytest.mark.parametrize("pp", [2, 3, 5])
def test_stages_lie_as_torch_places_them(pp: int, style: Any) -> None:
    """Each stage has the owner that torch's pipelines give it, and a rank's chunks are its stages in model order."""
    stage_map = plan_stages(2 * pp, pp=pp, vpp=2, placement=style)
    owners = generate_stage_to_rank_mapping(pp, 2 * pp, style)
    assert owners == {stage: stage_map.owner(stage) for stage in range(2 * pp)}
    for pp_rank in range(pp):
        assert stage_map.owned_by(pp_rank) == tuple(stage for stage, owner in owners.items() if owner == pp_rank)
    assert stage_map.ends_meet == (style == "v")


def test_a_rank_between_the_ends_of_a_v_needs_a_layer() -> None:
    """Embedding and head both lie on rank 0, so that even the last rank may not be left without layers."""
    with pytest.raises(PlanError, match="leaves pp_rank=1 without layers"):
        plan_stages(4, pp=2, vpp=2, stages=(2, 0, 0, 2), placement="v")
    assert plan_stages(4, pp=2, vpp=2, stages=(2, 0, 0, 2)).layers[3] == (2, 3)


def test_table_of_an_uneven_map() -> None:
    """A row for each rank, a column for each chunk."""
    assert str(plan_stages(9, pp=3, vpp=2, stages=(0, 2, 3, 0, 4, 0), mtp=1)).splitlines() == [
        "pp_rank  chunk 0     chunk 1",
        "0        embedding   empty",
        "1        layers 0-1  layers 5-8",
        "2        layers 2-4  mtp, head",
    ]


def test_table_of_a_map_with_noop_layers() -> None:
    """Noop layers are shown by their positions in the numbering that counts them."""
    assert str(plan_stages(6, pp=4, noop_layers=(0, 7))).splitlines() == [
        "pp_rank  chunk 0",
        "0        embedding, layer 0, noop 0",
        "1        layers 1-2",
        "2        layers 3-4",
        "3        layer 5, noop 7, head",
    ]


@pytest.mark.parametrize(
    ("division", "line"),
    [
        (
            {"num_layers": 30, "pp": 4, "vpp": 2},
            r"num_layers=30: does not split evenly over pp=4 \* vpp=2 = 8 stages; use pp\*vpp from "
            r"\{1, 2, 3, 5, 6, 10, 15, 30\}, set layout.stages, or add noop layers",
        ),
        (
            {"num_layers": 5, "pp": 2, "noop_layers": (9, 9)},
            r"noop_layers=\(9, 9\): positions must lie in 0 \.\. 6, .*; \[9, 9\] do not\n"
            r".*names a position twice; name it once\n"
            r".*num_layers=5: with 2 noop layers does not split evenly over pp=2",
        ),
        (
            {"num_layers": 8, "pp": 2, "stages": (1, 2, 3), "noop_layers": (0,)},
            r"noop_layers=\(0,\): excludes layout.stages.*; keep one of the two\n"
            r".*stages=\(1, 2, 3\): must have one count for each of pp=2 \* vpp=1 = 2 stages, not 3\n"
            r".*must add up to num_layers=8, not 6",
        ),
        ({"num_layers": 3, "pp": 2, "stages": (4, -1)}, r"stages=\(4, -1\): counts must be >= 0"),
        (
            {"num_layers": 4, "pp": 4, "stages": (2, 0, 1, 1)},
            r"layout.stages=\(2, 0, 1, 1\): leaves pp_rank=1 without layers, .* parameter to save; give it a layer",
        ),
        (
            {"num_layers": 2, "pp": 4, "noop_layers": (1, 2)},
            r"layout.noop_layers=\(1, 2\): leaves pp_rank=1 .*\nlayout.noop_layers=\(1, 2\): leaves pp_rank=2",
        ),
    ],
)
def test_impossible_divisions_say_why(division: dict[str, Any], line: str) -> None:
    """Every rule that is broken is named, with the value and the way out."""
    with pytest.raises(PlanError, match=line):
        built(division)


@pytest.mark.parametrize(
    ("stages", "layout"),
    [((0, 4), "E|t*4L"), ((4, 0), "Et*4|L"), ((1, 0, 2, 1), "Et||t*2|tL"), ((0, 0, 0, 4), "E|||t*4L")],
)
def test_empty_stages_that_megatron_trains_are_allowed(stages: tuple[int, ...], layout: str) -> None:
    """A stage may hold the embedding or the head alone, or nothing while its rank has another stage."""
    assert megatron_layout(plan_stages(4, pp=2, vpp=len(stages) // 2, stages=stages)) == layout


def test_layout_means_the_same_to_megatron(ranks: Pool) -> None:
    """Parsed by Megatron-core, the layout gives each chunk the same layers under the same global indices."""
    ranks.run(compare_layouts, 1)


def compare_layouts() -> None:
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    @QUIET
    @given(divisions())
    def compare(division: dict[str, Any]) -> None:
        stage_map = built(division)
        pp, vpp = stage_map.pp, stage_map.vpp
        parallel_state.set_virtual_pipeline_model_parallel_world_size(vpp if vpp > 1 else None)
        layout = PipelineParallelLayerLayout(megatron_layout(stage_map), pp)
        assert layout.virtual_pipeline_model_parallel_size == vpp
        layout.validate_layer_layout(division["num_layers"], stage_map.mtp)
        for stage, layers in enumerate(stage_map.layers):
            place = {"pp_rank": stage % pp, "vp_stage": stage // pp}
            assert layout.get_layer_id_list(LayerType.decoder, **place) == list(layers)
            assert layout.get_num_layers_to_build(LayerType.decoder, **place) == len(layers)
            assert layout.get_layer_offset(LayerType.decoder, **place) == sum(map(len, stage_map.layers[:stage]))
            assert layout.get_num_layers_to_build(LayerType.embedding, **place) == (stage == 0)
            assert layout.get_num_layers_to_build(LayerType.loss, **place) == (stage == pp * vpp - 1)
            is_last = stage == pp * vpp - 1
            assert layout.get_num_layers_to_build(LayerType.mtp, **place) == (stage_map.mtp if is_last else 0)

    compare()
