"""The switch for equal bits, on the virtual NPU."""

import os
from pathlib import Path

import attrs
import pytest

from ridgeline.kernels.device import open_device
from ridgeline.kernels.npu.virtual.processes import VirtualProcess, call_ranks
from tests.kernels.npu.training import on_npu
from tests.parity.small import MOE, job_of, model_of


@pytest.mark.usefixtures("virtual_npu")
def test_cann_and_hccl_are_told() -> None:
    """torch_npu's own level follows torch's switch, HCCL's variables are set, and both are taken back."""
    import torch_npu

    level = torch_npu.npu._get_deterministic_level
    assert level() == 0
    draws = []
    for _ in range(2):
        with open_device("npu").deterministic(7):
            assert level() == 1
            assert os.environ["HCCL_DETERMINISTIC"] == "true"
            assert os.environ["CLOSE_MATMUL_K_SHIFT"] == "1"
            draws.append(torch_npu.npu.initial_seed())
    assert draws == [7, 7]
    assert level() == 0
    assert "HCCL_DETERMINISTIC" not in os.environ


def test_two_runs_make_the_same_calls(virtual_ranks: list[VirtualProcess], tmp_path: Path) -> None:
    """Every op of two runs, with its shapes, comes in the same order on every rank."""
    job = on_npu(job_of(model_of(MOE), world_size=2, layout__tp=2, layout__sp=True, layout__ep=2))
    job = attrs.evolve(job, run=attrs.evolve(job.run, deterministic=True))
    # A process's first run with experts makes the tensor in which Megatron-core keeps a scale; later ones copy into it.
    _, first, again = (
        call_ranks(virtual_ranks, "tests.kernels.npu.training:calls_of_a_step", job, store=tmp_path / str(run))
        for run in range(3)
    )
    assert first == again
    assert all(any(name == "npu::npu_fusion_attention" for name, *_ in calls) for calls, _ in first)
