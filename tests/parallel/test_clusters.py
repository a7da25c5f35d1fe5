"""Named clusters hold the figures of their sources, and a wrong name gets a near match."""

import pytest

from ridgeline.core.errors import SpecError
from ridgeline.parallel.clusters import PRESETS, cluster_preset


@pytest.mark.parametrize(
    ("name", "cube_tflops", "product_page_tflops"),
    [("atlas-800t-a2-910b1", 363.7, 386), ("atlas-800t-a2-910b2", 353.9, 376), ("atlas-800t-a2-910b3", 294.9, 313.3)],
)
def test_cube_and_vector_peaks_add_up_to_the_product_page(name, cube_tflops, product_page_tflops):
    chip = cluster_preset(name).chip
    assert chip.cube_flops / 1e12 == pytest.approx(cube_tflops, abs=0.1)
    assert (chip.cube_flops + chip.vector_flops) / 1e12 == pytest.approx(product_page_tflops, abs=0.5)


def test_an_a2_npu_reaches_its_seven_peers_with_392_gigabytes_a_second():
    cluster = cluster_preset("atlas-800t-a2")
    assert cluster.intra.topology == "full_mesh"
    assert 2 * cluster.intra.bandwidth * (cluster.devices_per_node - 1) == 392e9


def test_the_default_chip_is_named_with_its_reason():
    default = cluster_preset("atlas-800t-a2").chip
    assert default.name == "910B2"
    assert "best fit" in default.source
    assert default.cube_flops == cluster_preset("atlas-800t-a2-910b2").chip.cube_flops


def test_an_a3_supernode_ends_after_384_modules():
    assert cluster_preset("atlas-900-a3", 48).inter == cluster_preset("atlas-900-a3", 48).intra
    assert cluster_preset("atlas-900-a3", 49).inter.bandwidth == 25e9


def test_a_rank_count_can_be_chosen():
    assert cluster_preset("cpu", devices_per_node=4).world_size == 4


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_names_its_source(name):
    assert cluster_preset(name, 3).nodes == 3
    assert cluster_preset(name).chip.source


def test_an_unknown_name_gets_a_near_match():
    with pytest.raises(SpecError, match="cluster='atlas-800-a2': unknown; did you mean 'atlas-800t-a2'"):
        cluster_preset("atlas-800-a2")
