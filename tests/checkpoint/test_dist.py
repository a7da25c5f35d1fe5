"""Training goes on as if it had never stopped: the same layout bit for bit, another one up to the order of sums."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from ridgeline.core.codec import dumps
from ridgeline.core.job import Job
from tests.checkpoint.training import checkpoint_of, resumed, uninterrupted
from tests.parallel.examples import dense_model, job_of, moe_model
from tests.pool import Pool

DENSE = dense_model(layers=4, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=131, attention={"qkv_bias": True})
TIED = attrs.evolve(DENSE, tied_embeddings=True)
AHEAD = attrs.evolve(TIED, mtp=1)
MOE = moe_model(layers=2, experts=4, ffn=24, hidden=32, heads=4, kv_heads=2, vocab_size=131)


def job(model: Any, world_size: int, **changes: Any) -> Job:
    """A job of few and short samples; layers may stand on their own."""
    small = {"batch__seq_len": 16, "batch__gbs": 8, "run__steps": 4, "optimizer__lr": 1e-2, "precision__params": "fp32"}
    return job_of(model, world_size=world_size, **{**small, **changes})


PLAIN = {"memory__distributed_optimizer": False}
BF16 = {"precision__params": "bf16"}

SAME = {
    "tp2 pp2, bf16": job(DENSE, 4, layout__tp=2, layout__pp=2, **BF16),
    "dp2, overlapped": job(TIED, 2, comm__overlap_grad_reduce=True, comm__overlap_param_gather=True, **BF16),
    "ep2": job(MOE, 2, layout__ep=2),
    "pp2, two tokens ahead": job(attrs.evolve(MOE, mtp=2), 2, layout__pp=2),
}
SAME_FULL = {
    "one rank": job(DENSE, 1),
    "one rank, plain": job(DENSE, 1, **PLAIN),
    "tp2 sp": job(DENSE, 2, layout__tp=2, layout__sp=True),
    "tp2 sp, plain, bf16": job(TIED, 2, layout__tp=2, layout__sp=True, **PLAIN, **BF16),
    "pp2 vpp2": job(TIED, 2, layout__pp=2, layout__vpp=2),
    "pp4 uneven": job(TIED, 4, layout__pp=4, layout__stages=(1, 1, 2, 0)),
    "dp4": job(DENSE, 4),
    "dp4, plain": job(DENSE, 4, **PLAIN),
    "tp2 dp2, bf16": job(DENSE, 4, layout__tp=2, **BF16),
    "ep2 dp4": job(MOE, 4, layout__ep=2),
    "ep2 tp2 sp": job(MOE, 4, layout__ep=2, layout__tp=2, layout__sp=True),
    "ep2 pp2, plain, bf16": job(MOE, 4, layout__ep=2, layout__pp=2, **PLAIN, **BF16),
}

OTHER = {
    "tp2 pp2 to pp4": (job(DENSE, 4, layout__tp=2, layout__pp=2), job(DENSE, 4, layout__pp=4)),
    "dp4 to tp2 dp2": (job(TIED, 4), job(TIED, 4, layout__tp=2)),
    "ep2 to ep1": (job(MOE, 2, layout__ep=2), job(MOE, 1)),
    "cp2 to one": (job(DENSE, 2, layout__cp=2), job(DENSE, 1)),
    "one to cp2": (job(DENSE, 1), job(DENSE, 2, layout__cp=2)),
}
OTHER_FULL = {
    "two tokens, pp2 to tp2 pp2": (job(AHEAD, 2, layout__pp=2), job(AHEAD, 4, layout__tp=2, layout__pp=2)),
    "pp4 to tp2 pp2 sp": (job(TIED, 4, layout__pp=4), job(TIED, 4, layout__tp=2, layout__pp=2, layout__sp=True)),
    "dp4 to dp2": (job(DENSE, 4), job(DENSE, 2)),
    "dp2 to dp4": (job(DENSE, 2), job(DENSE, 4)),
    "distributed to plain": (job(DENSE, 2), job(DENSE, 2, **PLAIN)),
    "plain to distributed": (job(DENSE, 2, **PLAIN), job(DENSE, 4)),
    "one to pp2 vpp2": (job(TIED, 1), job(TIED, 2, layout__pp=2, layout__vpp=2)),
    "even to uneven": (
        job(DENSE, 2, layout__pp=2),
        job(DENSE, 2, layout__pp=2, layout__stages=(1, 3)),
    ),
    "ep1 to ep2": (job(MOE, 2), job(MOE, 2, layout__ep=2)),
    "ep2 to ep4": (job(MOE, 2, layout__ep=2), job(MOE, 4, layout__ep=4)),
    "ep2 tp2 to etp2": (
        job(MOE, 4, layout__ep=2, layout__tp=2, layout__sp=True),
        job(MOE, 4, layout__tp=2, layout__etp=2, layout__sp=True),
    ),
}


def full(cases: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(*(c if isinstance(c, tuple) else (c,)), id=name, marks=pytest.mark.full)
        for name, c in cases.items()
    ]


def quick(cases: dict[str, Any]) -> list[Any]:
    return [pytest.param(*(c if isinstance(c, tuple) else (c,)), id=name) for name, c in cases.items()]


@pytest.mark.parametrize("job", [*quick(SAME), *full(SAME_FULL)])
def test_resumed_bit_for_bit(ranks: Pool, tmp_path: Path, job: Job) -> None:
    """Losses, gradient norms and random streams after a resume equal those of the run that never stopped."""
    text, world_size = dumps(job), job.cluster.world_size
    never_stopped = ranks.run(uninterrupted, world_size, text, str(tmp_path), 2, 4)
    assert ranks.run(resumed, world_size, text, checkpoint_of(tmp_path, 2), 4) == never_stopped


@pytest.mark.parametrize(("saved", "then"), [*quick(OTHER), *full(OTHER_FULL)])
def test_resumed_under_another_layout(ranks: Pool, tmp_path: Path, saved: Job, then: Job) -> None:
    """Under another layout losses and gradient norms differ by no more than sums in fp32 do in another order."""
    expected = ranks.run(uninterrupted, saved.cluster.world_size, dumps(saved), str(tmp_path), 2, 4)
    found = ranks.run(resumed, then.cluster.world_size, dumps(then), checkpoint_of(tmp_path, 2), 4)
    for losses, _ in found:
        assert losses == [pytest.approx(step, rel=1e-5) for step in expected[0][0]]
