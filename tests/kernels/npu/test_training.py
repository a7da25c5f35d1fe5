"""Megatron-core's layers with our kernels, trained on two emulated npus, beside a CPU."""

from pathlib import Path

import attrs
import pytest

from ridgeline.core.model import Indexer, Rope, YarnRope
from ridgeline.kernels.npu.virtual.processes import VirtualProcess, call_ranks
from tests.kernels.npu.training import on_npu
from tests.parity import on_ranks
from tests.parity.small import DELTA, GATED, INDEXED, LATENT, MLP, MODELS, MOE, ROUTED, job_of, layers_of
from tests.parity.wholes import different, whole_gradients
from tests.pool import Pool

TRAIN = "tests.kernels.npu.training:train"
STEPS = 2
YARN = Rope(base=500.0, scaling=YarnRope(factor=4.0, original_max_position=16, mscale=1.0, mscale_all_dim=0.7))
GATED_MOE = attrs.evolve(MOE, shared_ffn=44, shared_gate=True)
TRAINED = {
    "dense": MODELS["dense"],
    "moe": MODELS["moe"],
    # DeepSeek-V2-Lite's attention, whose queries have no latent, and DeepSeek-V3's, over dense layers and routed ones
    "latent": layers_of((attrs.evolve(LATENT, q_lora_rank=None, rope=YARN), MLP), (LATENT, ROUTED)),
    # DeepSeek-V3.2's attention, and the loss of its indexer
    "indexed": layers_of((INDEXED, MLP), (INDEXED, ROUTED)),
    "hybrid": layers_of((DELTA, GATED_MOE), (GATED, GATED_MOE), norm="zero_centred_rms"),  # Qwen3-Next's
}
ATTENTION = {"npu::npu_rms_norm", "npu::npu_rotary_mul", "npu::npu_fusion_attention", "npu::npu_swiglu"}


@pytest.mark.parametrize("name", TRAINED)
def test_steps_equal_a_cpus(name: str, ranks: Pool, virtual_ranks: list[VirtualProcess], tmp_path: Path) -> None:
    """Under tp2 with sp all gradients of a step, and losses and norms of whole ones, are those of one CPU rank."""
    model = TRAINED[name]
    (truth,) = ranks.run(on_ranks.train, 1, job_of(model), STEPS)
    job = on_npu(job_of(model, world_size=2, layout__tp=2, layout__sp=True, layout__ep=1 if name == "dense" else 2))
    results = call_ranks(virtual_ranks, TRAIN, job, STEPS, store=tmp_path / "npu")
    for ours, executed in results:
        assert ours.losses == pytest.approx(truth.losses, rel=1e-5)  # fp32, in another order of sums
        assert ours.grad_norms == pytest.approx(truth.grad_norms, rel=1e-5)
        assert executed >= (ATTENTION if name != "indexed" else ATTENTION - {"npu::npu_fusion_attention"})
        assert ("npu::npu_grouped_matmul" in executed) == (name != "dense")
    gradients = whole_gradients(ours.gradients for ours, _ in results)
    assert different(gradients, whole_gradients([truth.gradients])) == {}


SHARED = {
    "ring": ("latent", {}, {"npu::npu_fusion_attention", "npu::npu_fusion_attention_grad"}),
    "ulysses": ("dense", {"layout__cp_algorithm": "ulysses"}, ATTENTION),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_samples_equal_a_cpus(
    name: str, ranks: Pool, virtual_ranks: list[VirtualProcess], tmp_path: Path
) -> None:
    """Under cp2 parts of attention are torch_npu's kernels, and steps those of one CPU rank."""
    model, fields, kernels = SHARED[name]
    (truth,) = ranks.run(on_ranks.train, 1, job_of(TRAINED[model]), STEPS)
    job = on_npu(job_of(TRAINED[model], world_size=2, layout__cp=2, **fields))
    results = call_ranks(virtual_ranks, TRAIN, job, STEPS, store=tmp_path / "npu")
    for ours, executed in results:
        assert ours.losses == pytest.approx(truth.losses, rel=1e-5)  # fp32, in another order of sums
        assert ours.grad_norms == pytest.approx(truth.grad_norms, rel=1e-5)
        assert executed >= kernels
    gradients = whole_gradients(ours.gradients for ours, _ in results)
    assert different(gradients, whole_gradients([truth.gradients])) == {}


def test_sparse_attention_by_its_kernels(ranks: Pool, virtual_ranks: list[VirtualProcess], tmp_path: Path) -> None:
    """In bf16 and DeepSeek's sizes of a head an indexer and its attention are torch_npu's, and learn as on a CPU."""
    indexer = Indexer(heads=16, head_dim=128, topk=5)
    mixer = attrs.evolve(LATENT, kv_lora_rank=512, rope_head_dim=64, indexer=indexer)
    options = {"world_size": 2, "precision": "bf16", "layout__tp": 2, "layout__sp": True}
    job = job_of(layers_of((mixer, MLP), (mixer, MLP)), **options)
    truth, _ = ranks.run(on_ranks.train, 2, job, STEPS)
    for ours, executed in call_ranks(virtual_ranks, TRAIN, on_npu(job), STEPS, store=tmp_path / "npu"):
        assert executed >= {"npu::npu_lightning_indexer", "npu::npu_sparse_flash_attention", "npu::npu_rotary_mul"}
        assert ours.losses == pytest.approx(truth.losses, rel=1e-2)  # bf16 holds three digits, sums of it two
        assert ours.grad_norms == pytest.approx(truth.grad_norms, rel=5e-2)
