"""Layouts known to be wrong upstream are refused or repaired, each with its reference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.model import GatedDeltaNet, LatentAttention
from ridgeline.parallel.known_wrong import RESUME_RULES, RULES, refusals, repaired, resume_problems
from tests.parallel.examples import DENSE, MOE, changed, job_of

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
TIED_MTP = changed(DENSE, mtp=1, tied_embeddings=True)

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
    st.sampled_from([DENSE, MOE, GDN, MLA, TIED_MTP]),
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
        (job_of(DENSE, layout__cp=2, batch__packing="eod_reset"), "objective.per_token", False, True),
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
        (job_of(MLA, layout__tp=2), "layout.tp=2: gradients of latent attention"),
        (job_of(TIED_MTP, layout__tp=2, layout__pp=2), "model.mtp=1: with tied embeddings"),
        (job_of(TIED_MTP, layout__cp=2), "layout.cp=2: the multi-token-prediction loss"),
    ],
)
def test_refusals(job, text):
    assert [str(problem)[: len(text)] for problem in refusals(job)] == [text]


def test_names_and_references_are_there_and_unique():
    names = [rule.name for rule in (*RULES, *RESUME_RULES)]
    assert len(set(names)) == len(names)
    assert all(rule.reference and rule.sentence for rule in (*RULES, *RESUME_RULES))
    assert all((rule.repair is not None) == (rule.action == "repair") for rule in RULES)


@pytest.mark.parametrize(
    ("saved_ep", "ep", "survives"), [(1, 1, True), (2, 4, True), (4, 2, True), (2, 1, False), (1, 2, False)]
)
def test_experts_keep_their_optimizer_on_resume(saved_ep, ep, survives):
    problems = resume_problems(job_of(MOE, layout__ep=saved_ep), job_of(MOE, layout__ep=ep))
    assert (problems == ()) == survives
    if not survives:
        assert str(problems[0]).startswith(f"layout.ep={ep}: experts have an optimizer of their own")


def test_a_dense_model_resumes_under_any_layout():
    assert resume_problems(job_of(DENSE, layout__tp=2, layout__pp=2), job_of(DENSE, layout__pp=4)) == ()
