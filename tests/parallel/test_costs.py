"""Operations take what the chip's peaks allow: never less, more where tiles or sums do not fill, and none for free."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.core.job import Comm, Dpo, Lora, Memory
from ridgeline.models.jobs import preset
from ridgeline.parallel.clusters import chip_of
from ridgeline.parallel.costs import TILE_COLUMNS, TILE_ROWS, accumulate_us, costs_of, op_parts, product_us
from ridgeline.parallel.of_job import mesh_of
from ridgeline.parallel.ops import Op
from ridgeline.parallel.plan import plan

CHIP = chip_of("910B2")
FREE = attrs.evolve(
    CHIP, efficiency=attrs.evolve(CHIP.efficiency, gemm=1.0, gemm_half_depth=0.0, memory=1.0, launch_us=0.0)
)
dims = st.integers(1, 20_000)


@given(dims, dims, dims)
def test_no_product_beats_the_roof(m, k, n):
    flops, moved = 2 * m * k * n, 2 * (m * k + k * n + m * n)
    roof_us = max(flops / CHIP.cube_flops, moved / CHIP.hbm_bandwidth) * 1e6
    assert product_us(m, k, n, CHIP) >= product_us(m, k, n, FREE) >= roof_us * (1 - 1e-12)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1024, 8192))
def test_a_product_whose_tiles_fill_the_cores_meets_the_roof(waves, columns, k):
    m, n = waves * CHIP.cube_cores * TILE_ROWS, columns * TILE_COLUMNS
    roof_us = max(2 * m * k * n / FREE.cube_flops, 2 * (m * k + k * n + m * n) / FREE.hbm_bandwidth) * 1e6
    assert product_us(m, k, n, FREE) == pytest.approx(roof_us)


def test_products_in_fp32_run_at_its_own_peak():
    assert CHIP.fp32_flops is not None
    slower = CHIP.cube_flops / CHIP.fp32_flops
    assert product_us(8192, 8192, 8192, FREE, 4) == pytest.approx(slower * product_us(8192, 8192, 8192, FREE, 2))


def test_one_row_more_than_a_wave_costs_a_wave():
    full = CHIP.cube_cores * TILE_ROWS
    assert product_us(full + 1, 8192, TILE_COLUMNS, FREE) == pytest.approx(
        2 * product_us(full, 8192, TILE_COLUMNS, FREE)
    )


def test_a_large_product_runs_as_fast_as_one_was_measured():
    """315 TFLOP/s at 4096^3 and 301 at 8192^3 on a 910B2 (github.com/zzc0721/torch-performance-test-data, issue 109).

    Within a training step products run a little slower, as published steps say; so below, by no more than 15 %.
    """
    for size, measured in ((4096, 315e12), (8192, 301e12)):
        reached = 2 * size**3 / product_us(size, size, size, CHIP) * 1e6
        assert 0.85 * measured < reached < measured


JOB = preset("llama2-7b", layout={"tp": 2, "sp": True, "pp": 1}, batch={"gbs": 64})


def parts(op, job=JOB):
    return op_parts(op, costs_of(job, mesh_of(job)))


def test_attention_with_small_heads_waits_for_the_vector_unit():
    """Half the products of as many scores take as long where the softmax is what takes time."""
    there, back = parts(Op("attention", attention_flops=512 * 10**9, attention_scores=10**9))
    half, half_back = parts(Op("attention", attention_flops=256 * 10**9, attention_scores=10**9))
    assert there.attention == half.attention
    assert back.attention == half_back.attention > there.attention
    large, _ = parts(Op("attention", attention_flops=4096 * 10**9, attention_scores=10**9))
    assert large.attention > 2 * there.attention


def test_a_backward_has_the_products_of_both_gradients():
    there, back = parts(Op("linear", gemms=((8192, 4096, 4096),)))
    assert there.weight == 0
    assert back.gemm == pytest.approx(there.gemm, rel=0.1)
    assert back.weight == pytest.approx(there.gemm, rel=0.1)


@pytest.mark.parametrize("tp_overlap", ["mc2", "coc"])
def test_fused_communication_hides_some_of_it(tp_overlap):
    plain, fused = (dict(plan(attrs.evolve(JOB, comm=Comm(tp_overlap=one))).time.parts) for one in ("none", tp_overlap))
    assert 0 < fused["tp"] < plain["tp"]
    assert fused["gemm"] == plain["gemm"]


def test_frozen_weights_have_no_gradients_and_adapters_cost_little():
    tuned = attrs.evolve(JOB, adapter=Lora(rank=8))
    there, back = parts(Op("linear_qkv", gemms=((8192, 4096, 4096),)))
    with_adapter, its_back = parts(Op("linear_qkv", gemms=((8192, 4096, 4096),)), tuned)
    assert there.gemm < with_adapter.gemm < 1.5 * there.gemm
    assert 0 < its_back.weight < back.weight / 2
    assert parts(Op("head", gemms=((8192, 4096, 4096),)), tuned)[1].weight == 0
    assert plan(tuned).time.step_us < plan(JOB).time.step_us


def test_a_reference_model_costs_a_forward():
    alone, beside = (plan(attrs.evolve(JOB, objective=Dpo(loss=loss))).time for loss in ("simpo", "sigmoid"))
    assert beside.forward_us[0] == pytest.approx(2 * alone.forward_us[0], rel=0.02)
    assert beside.backward_us[0] == pytest.approx(alone.backward_us[0], rel=0.02)  # the loss reads both models


@pytest.mark.parametrize("memory", [{"swap_attention": True}, {"swap_optimizer": True}])
def test_a_slow_host_is_waited_for_and_a_fast_one_is_not(memory):
    def step_us(host_bandwidth, **fields):
        chip = attrs.evolve(JOB.cluster.chip, host_bandwidth=host_bandwidth)
        job = attrs.evolve(JOB, cluster=attrs.evolve(JOB.cluster, chip=chip), memory=Memory(**fields))
        return plan(job).time.step_us

    assert step_us(1e15, **memory) == pytest.approx(step_us(1e15))
    assert step_us(1e9, **memory) > 1.1 * step_us(1e9)


def test_products_that_add_up_gradients_leave_nothing_to_add():
    assert accumulate_us(10**9, JOB) > 0
    assert accumulate_us(10**9, attrs.evolve(JOB, memory=Memory(fused_accumulation=True))) == 0
