"""Megatron-core's layers with our kernels, trained on two emulated npus, beside a CPU."""

from pathlib import Path
from typing import Any

import pytest

from ridgeline.kernels.npu.virtual.processes import VirtualProcess, call_ranks
from tests.kernels.npu.training import on_npu
from tests.parity import on_ranks
from tests.parity.small import MODELS, job_of
from tests.pool import Pool

TRAIN = "tests.kernels.npu.training:train"
STEPS = 2
OF_LAYERS = {"npu::npu_rms_norm", "npu::npu_rotary_mul", "npu::npu_fusion_attention", "npu::npu_swiglu"}


@pytest.mark.parametrize(
    ("model", "fields"),
    [("dense", {}), ("moe", {"layout__ep": 2})],
    ids=["dense tp2 sp", "moe tp2 sp ep2"],
)
def test_steps_equal_a_cpus(
    model: str, fields: dict[str, Any], ranks: Pool, virtual_ranks: list[VirtualProcess], tmp_path: Path
) -> None:
    """Losses and gradient norms of whole steps, backward and optimizer included, are those of one CPU rank."""
    (expected,) = ranks.run(on_ranks.train, 1, job_of(MODELS[model]), STEPS)
    job = on_npu(job_of(MODELS[model], world_size=2, layout__tp=2, layout__sp=True, **fields))
    for result in call_ranks(virtual_ranks, TRAIN, job, STEPS, store=tmp_path / "npu"):
        assert result["losses"] == pytest.approx(expected.losses, rel=1e-5)  # fp32, in another order of sums
        assert result["norms"] == pytest.approx(expected.grad_norms, rel=1e-5)
        assert result["executed"] >= OF_LAYERS
