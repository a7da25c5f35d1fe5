"""Layouts known to be wrong upstream are refused or repaired, each with its reference; those we can reach, shown so."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.model import GatedDeltaNet, LatentAttention
from ridgeline.parallel.known_wrong import RULES, refusals, repaired
from tests.parallel.examples import DENSE, MOE, changed, dense_model, job_of, moe_model

GDN = changed(
    DENSE,
    blocks=(
        changed(
            DENSE.blocks[0], block__mixer=GatedDeltaNet(key_heads=2, value_heads=2, key_head_dim=8, value_head_dim=8)
        ),
    ),
)
MLA = changed(
    DENSE,
    blocks=(
        changed(
            DENSE.blocks[0],
            block__mixer=LatentAttention(heads=4, kv_lora_rank=8, nope_head_dim=8, rope_head_dim=4, v_head_dim=8),
        ),
    ),
)
AHEAD = changed(DENSE, mtp=1)

jobs = st.builds(
    lambda model, tp, pp, vpp, cp, sp, p2p, packing: job_of(
        model,
        layout__tp=tp,
        layout__pp=pp,
        layout__vpp=vpp,
        layout__cp=cp,
        layout__sp=sp,
        comm__p2p=p2p,
        batch__packing=packing,
    ),
    st.sampled_from([DENSE, MOE, GDN, MLA, AHEAD]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from(["overlapped", "batched"]),
    st.sampled_from(["none", "eod_reset"]),
)


@given(jobs)
@settings(deadline=None)
def test_a_repaired_job_needs_no_further_repair(job):
    once, _ = repaired(job)
    assert repaired(once) == (once, ())


@given(jobs)
@settings(deadline=None)
def test_a_repair_is_told_exactly_when_something_changed(job):
    once, sentences = repaired(job)
    assert (once != job) == bool(sentences)


@pytest.mark.parametrize(
    ("job", "path", "before", "after"),
    [
        (job_of(DENSE, layout__pp=2, layout__vpp=2, comm__p2p="batched"), "comm.p2p", "batched", "overlapped"),
        (job_of(GDN, layout__tp=2), "layout.sp", False, True),
        (job_of(MLA, layout__tp=2), "layout.sp", False, True),
    ],
)
def test_repairs(job, path, before, after):
    section, name = path.split(".")
    once, sentences = repaired(job)
    assert getattr(getattr(job, section), name) == before
    assert getattr(getattr(once, section), name) == after
    assert len(sentences) == 1
    assert sentences[0].startswith(f"{path}: ")
    assert "https://github.com/NVIDIA/Megatron-LM" in sentences[0]


def test_batched_p2p_is_left_alone_where_neighbours_are_told_apart():
    job = job_of(DENSE, layout__pp=4, layout__vpp=2, comm__p2p="batched")
    assert repaired(job) == (job, ())


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (job_of(AHEAD, layout__cp=2), "layout.cp=2: the multi-token-prediction loss"),
    ],
)
def test_refusals(job, text):
    assert [str(problem)[: len(text)] for problem in refusals(job)] == [text]


def test_names_and_references_are_there_and_unique():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(rule.reference and rule.sentence for rule in RULES)
    assert all((rule.repair is not None) == (rule.action == "repair") for rule in RULES)


# What follows shows, with Megatron-core's own model and optimizer, that upstream is wrong and that the repair is right.


def two_ranks(model, **changes):
    return job_of(model, world_size=2, batch__gbs=4, batch__seq_len=16, precision__params="fp32", **changes)


def alone(model, **changes):
    return job_of(model, world_size=1, batch__gbs=4, batch__seq_len=16, precision__params="fp32", **changes)


def losses(results):
    """Of the rank that holds the last stage."""
    return max((result["loss"] for result in results), key=sum)


def overrides(job):
    """What the lowering makes of comm.p2p, in Megatron-core's words."""
    overlapped = job.comm.p2p == "overlapped"
    return {"overlap_p2p_comm": overlapped, "batch_p2p_comm": not overlapped}


SMALL = dense_model(layers=4)
SMALL_MOE = moe_model(layers=2, experts=4)


def test_batched_p2p_with_two_interleaved_stages_trains_something_else(ranks):
    asked = two_ranks(SMALL, layout__pp=2, layout__vpp=2, comm__p2p="batched")
    planned, _ = repaired(asked)
    (truth,) = ranks.run("tests.parallel.upstream:train", 1, alone(SMALL), 3, {})
    wrong = ranks.run("tests.parallel.upstream:train", 2, asked, 3, overrides(asked))
    right = ranks.run("tests.parallel.upstream:train", 2, planned, 3, overrides(planned))
    assert losses(right) == pytest.approx(truth["loss"], rel=1e-6)
    assert right[0]["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-5)
    assert wrong[0]["grad_norm"][0] > 10 * truth["grad_norm"][0]
    assert losses(wrong) != pytest.approx(truth["loss"], rel=1e-3)


def test_experts_replicated_over_tp_drift_apart(ranks):
    job = two_ranks(SMALL_MOE, layout__tp=2, layout__sp=True)
    (truth,) = ranks.run("tests.parallel.upstream:train", 1, alone(SMALL_MOE), 3, {})
    wrong = ranks.run("tests.parallel.upstream:train", 2, job, 3, {})
    assert losses(wrong)[:1] == pytest.approx(truth["loss"][:1], rel=1e-6)
    assert losses(wrong)[1] != pytest.approx(truth["loss"][1], rel=1e-4)
    assert ranks.run("tests.parallel.upstream:train_ours", 2, job, 3)[0] == pytest.approx(
        ranks.run("tests.parallel.upstream:train_ours", 1, alone(SMALL_MOE), 3)[0], rel=1e-6
    )


def test_gathered_logits_add_the_logarithm_of_tp_to_the_loss(ranks):
    job = two_ranks(SMALL, layout__tp=2)
    (truth,) = ranks.run("tests.parallel.upstream:train", 1, alone(SMALL), 1, {})
    wrong = ranks.run("tests.parallel.upstream:train", 2, job, 1, {"parallel_output": False})
    right = ranks.run("tests.parallel.upstream:train", 2, job, 1, {})
    assert losses(right) == pytest.approx(truth["loss"], rel=1e-6)
    assert losses(wrong)[0] - truth["loss"][0] == pytest.approx(math.log(2), rel=1e-4)


def test_a_loaded_optimizer_counts_one_step_for_every_parameter(ranks):
    outcomes = ranks.run("tests.parallel.upstream:reload_optimizer", 2, two_ranks(SMALL))
    for outcome in outcomes:
        assert outcome["distinct_steps_before"] > 1
        assert outcome["distinct_steps_after_load"] == 1
        assert outcome["repaired"] == outcome["uninterrupted"]
        assert outcome["loaded"] != pytest.approx(outcome["uninterrupted"], rel=1e-4)


def test_optimizer_state_of_experts_cannot_be_loaded_from_ep2_to_ep1(ranks, tmp_path):
    assert ranks.run("tests.parallel.upstream:save", 2, two_ranks(SMALL_MOE, layout__ep=2), str(tmp_path)) == [
        None,
        None,
    ]
    told = ranks.run("tests.parallel.upstream:load_error", 2, two_ranks(SMALL_MOE), str(tmp_path))
    assert all(text.startswith("KeyError") for text in told)
    # That ours can be is for tests/checkpoint/test_dist.py, "ep2 to ep1".
