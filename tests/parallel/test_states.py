"""Weights, gradients and optimizer states are those Megatron-core holds, when it holds them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.job import Memory, Precision
from ridgeline.parallel.held import plan_held
from ridgeline.parallel.of_job import mesh_of, stages_of
from ridgeline.parallel.shards import plan_shards
from ridgeline.parallel.states import UPDATE_WORKSPACE_BYTES, States, states_of
from tests.parallel.examples import dense_model, job_of, moe_model

DENSE = dense_model(layers=2, hidden=128, ffn=352, vocab_size=512)
MOE = moe_model(layers=2, hidden=128, ffn=96, experts=4, vocab_size=512)
SIZES = {"batch__gbs": 4}


def states(job) -> States:
    stages, mesh = stages_of(job), mesh_of(job)
    held = plan_held(job, mesh=mesh, stages=stages, shards=plan_shards(job.model, job.layout))
    return states_of(job, mesh=mesh, held=held)


RUNS = {
    "bf16": job_of(DENSE, world_size=1, **SIZES, memory=Memory(distributed_optimizer=False)),
    "fp32": job_of(DENSE, world_size=2, **SIZES, precision=Precision(params="fp32")),
    "over dp": job_of(DENSE, world_size=2, **SIZES),
    "bf16 gradients": job_of(DENSE, world_size=2, **SIZES, precision=Precision(grads="bf16")),
    "experts": job_of(MOE, world_size=2, **SIZES, layout__ep=2),
}


@pytest.mark.parametrize("name", RUNS)
def test_states_are_those_of_megatron(ranks, name):
    """To a hundredth: norms of a job this small fill their buffers' padding."""
    job = RUNS[name]
    planned = states(job)
    for measured in ranks.run("tests.parallel.saved:state_bytes", job.cluster.world_size, job):
        before, after = measured["before"], measured["after"]
        assert before["moments"] == 0  # they come with the first update
        for part in ("params", "grads", "masters"):
            assert before[part] == after[part]
            assert after[part] == pytest.approx(getattr(planned, part), rel=0.01)
        for part in ("moments", "main_grads"):
            assert after[part] == pytest.approx(getattr(planned, part), rel=0.01)


schemes = st.fixed_dictionaries(
    {
        "grads": st.sampled_from(["fp32", "bf16"]),
        "masters": st.sampled_from(["fp32", "low_bits"]),
        "moments": st.sampled_from(["fp32", "bf16"]),
    }
)


@given(schemes, st.sampled_from([1, 2, 4]), st.booleans())
@settings(deadline=None)
def test_each_scheme_takes_its_bytes_a_parameter(scheme, dp, shared):
    """The table of states.py, as MindSpeed-LLM's documents give it: 18, or 6 + 12/d, less what each scheme saves."""
    memory = Memory(distributed_optimizer=shared)
    job = job_of(DENSE, world_size=dp, **SIZES, precision=Precision(**scheme), memory=memory)
    planned, d = states(job), dp if shared else 1
    elements = planned.params // 2
    saved = {"masters": 2 / d, "moments": 4 / d, "grads": 2}
    expected = 6 + 12 / d - sum(saved[part] for part, kind in scheme.items() if kind != "fp32")
    static = planned.params + planned.grads + planned.masters + planned.moments
    assert static / elements == pytest.approx(expected, rel=1e-3)
    assert (
        planned.main_grads == (planned.masters + planned.moments > 0) * (scheme["grads"] == "bf16") * elements * 4 // d
    )


def test_a_swapped_state_leaves_the_device_but_for_a_part():
    here = states(job_of(DENSE, world_size=2, **SIZES))
    away = states(job_of(DENSE, world_size=2, **SIZES, memory__swap_optimizer=True))
    assert away.optimizer == 0
    assert away.update - here.update == pytest.approx(here.optimizer / 16, abs=1)
    assert (away.params, away.grads) == (here.params, here.grads)


def test_grouped_experts_are_updated_as_one_tensor():
    model = moe_model(layers=4, hidden=128, ffn=512, experts=64, vocab_size=512)
    each, grouped = (states(job_of(model, world_size=1, memory__grouped_experts=grouped)) for grouped in (False, True))
    assert grouped.update == 64 * 2 * 512 * 128 * 4 * 2
    assert grouped._replace(update=each.update) == each


@pytest.mark.parametrize(("kernel", "temporaries"), [("torch", 2), ("npu_apply_adam_w", 1), ("npu_fused_adamw", 0)])
def test_an_update_takes_tensors_as_large_as_the_largest_weight(kernel, temporaries):
    job = job_of(DENSE, world_size=1, **SIZES, optimizer__kernel=kernel)
    largest = 2 * 352 * 128  # gate and up
    assert states(job).update == max(UPDATE_WORKSPACE_BYTES, temporaries * largest * 4)
