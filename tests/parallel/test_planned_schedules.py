"""Plans under every schedule: backwards split into input and weight gradients in memory and in time."""

from math import prod

import attrs
import pytest

from ridgeline.core.errors import LoweringError, PlanError
from ridgeline.core.job import FullRecompute, Memory
from ridgeline.core.model import Attention, Block, Mlp
from ridgeline.core.params import num_params
from ridgeline.models.lowerable import PLANNED_ONLY, check_lowerable
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.ops import block_ops, deferred, sizes_of
from ridgeline.parallel.plan import Plan, plan
from ridgeline.parallel.schedules.known import SCHEDULES
from ridgeline.parallel.shards import rank_params
from ridgeline.parallel.simulate import peak_in_flight
from ridgeline.parallel.validate import check_schedule
from ridgeline.parallel.work import deferred_bytes, kept_bytes, stage_work
from tests.parallel.examples import DENSE, MOE, changed, job_of

NPU = {"cluster__chip__device": "npu"}
JOB = job_of(DENSE, layout__pp=4, batch__gbs=32, **NPU)
NEEDS: dict[str, dict[str, object]] = {
    "gpipe": {},
    "zb_h1": {},
    "zb_2p": {},
    "zb_v": {},
    "zb_vpp": {"layout__vpp": 2},
    "dualpipe_v": {},
    "dualpipe_v_split": {},
    "seq1f1b": {"layout__slices": 4},
}
"""What each schedule needs to be planned, beside those that Megatron-core has."""


def planned(schedule: str, **changes: object) -> Plan:
    return plan(changed(JOB, layout__schedule=schedule, **{**NEEDS.get(schedule, {}), **changes}))


def test_every_schedule_is_planned_here() -> None:
    assert {*NEEDS, "1f1b", "interleaved_1f1b"} == set(SCHEDULES)


def test_a_split_backward_keeps_what_is_published() -> None:
    """32sbh bytes a layer: table 1 of arXiv 2401.10241, for GPT's feed-forward of 4h.

    A gated one of 8h/3 has as many weights, as large inputs and outputs together, and so keeps as much.
    """
    hidden, tokens = 192, 64
    block = Block(mixer=Attention(heads=4, kv_heads=4, head_dim=48), feed_forward=Mlp(ffn_hidden=8 * hidden // 3))
    sizes = sizes_of(job_of(attrs.evolve(DENSE, hidden=hidden), batch__seq_len=tokens))
    assert deferred(block_ops(block, sizes), sizes.width) == 32 * tokens * hidden


@pytest.mark.parametrize("schedule", NEEDS)
@pytest.mark.parametrize("recompute", [None, FullRecompute()])
def test_the_peak_is_that_of_a_replay(schedule: str, recompute: FullRecompute | None) -> None:
    """What each microbatch keeps changes at I from what its backward needs to what its weight gradients need."""
    result = planned(schedule, memory=Memory(recompute=recompute))
    sizes = sizes_of(result.job)
    work = stage_work(result.job, result.stages)
    kept = [sum(kept_bytes(run, sizes) for run in one.runs) for one in work]
    waiting = [sum(deferred_bytes(run, sizes) for run in one.runs) for one in work]
    for rank, actions in zip(result.memory, result.schedule.ranks, strict=True):
        held: dict[tuple[int, int], int] = {}
        totals = []
        for stage, kind, microbatch in actions:
            if kind in "FI":  # a pair's forward is held while its backward runs
                held[stage, microbatch] = kept[stage] if kind == "F" else waiting[stage]
            else:
                del held[stage, microbatch]
            totals.append(sum(held.values()))
        assert not held
        if rank.peak_at != "update":
            assert rank.activations_bytes <= max(totals) <= rank.activations_bytes + rank.work_bytes
            assert rank.activations_bytes in totals


def test_gpipe_holds_every_microbatch_and_zb_2p_twice_what_1f1b_does() -> None:
    """Activations grow with the schedule's bound, whatever its backwards keep."""
    job = changed(JOB, model=attrs.evolve(model_preset("llama2-7b")), batch__seq_len=4096)
    peaks = {name: plan(changed(job, layout__schedule=name)).memory[0] for name in ("1f1b", "zb_h1", "zb_2p", "gpipe")}
    assert [peaks[name].in_flight for name in peaks] == [4, 4, 7, 16]
    sizes = [peaks[name].activations_bytes for name in peaks]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("schedule", NEEDS)
def test_a_split_backward_takes_as_long_as_a_whole_one(schedule: str) -> None:
    """I and W add up to B on every rank, W being half of the products and the sum; no step is slower for the split."""
    split, unsplit = planned(schedule), planned("1f1b")
    time, whole = split.time, unsplit.time
    assert all(0 < weight < backward for backward, weight in zip(time.backward_us, time.weight_us, strict=True))
    if schedule != "seq1f1b":  # slices of this small job start more kernels than they save time
        assert sum(split.timeline.busy_us) == pytest.approx(sum(unsplit.timeline.busy_us))
    if split.schedule.vpp == 1 and schedule != "seq1f1b":
        assert split.timeline.busy_us == pytest.approx(unsplit.timeline.busy_us)
    assert sum(part for _, part in time.parts) == pytest.approx(time.step_us)
    if schedule not in ("gpipe", "seq1f1b"):
        assert time.step_us < whole.step_us
        assert time.bubble < whole.bubble


@pytest.mark.parametrize("tied", [False, True])
def test_in_a_v_both_ends_of_the_model_are_one_ranks(tied: bool) -> None:
    """No tied embedding is shared, no transfer crosses the turning points, and no parameter is counted twice."""
    model = attrs.evolve(DENSE, tied_embeddings=tied)
    loop, v = (planned(name, model=model) for name in ("1f1b", "zb_v"))
    whys = {row.why for row in v.collectives}
    assert "gradient of the tied embedding" not in whys
    assert ("gradient of the tied embedding" in {row.why for row in loop.collectives}) == tied
    sends = {row.why: row.counts for row in v.collectives if row.kind == "p2p"}
    count = v.job.num_microbatches
    assert sends["activations to the next stage"] == (count, 2 * count, 2 * count, count)
    assert sends["gradients to the previous stage"] == (count, 2 * count, 2 * count, count)
    assert [us == 0 for us in v.time.p2p_us] == [stage == 3 for stage in range(7)]
    elements = [sum(prod(param.local_shape) for param in rank_params(v, rank)) for rank in (0, 2, 4, 6)]
    assert sum(elements) == num_params(model)
    assert [rank.params_bytes for rank in v.memory] == [pytest.approx(2 * size, rel=0.02) for size in elements]


def test_slices_divide_activations_and_bubble() -> None:
    """Seq1F1B of 16K tokens on 8 ranks: published, Qwen3-4B goes from 46,214 to 26,942 MB and 1.14 times as fast."""
    model = attrs.evolve(model_preset("qwen2.5-7b"), max_position=16384)
    job = changed(JOB, model=model, layout__pp=4, batch__gbs=32, batch__seq_len=16384, **NPU)
    job = changed(job, cluster=cluster_preset("atlas-800t-a2"))
    whole, sliced = plan(job), plan(changed(job, layout__schedule="seq1f1b", layout__slices=4))
    held = [planned.memory[0].activations_bytes for planned in (whole, sliced)]
    assert held[1] / held[0] == pytest.approx((4 + 4 - 1) / (4 * 4), rel=0.02)
    bubbles = [planned.timeline.makespan_us - max(planned.timeline.busy_us) for planned in (whole, sliced)]
    assert bubbles[1] / bubbles[0] == pytest.approx(1 / 4, rel=0.10)  # a quarter, and more kernels to start
    assert sliced.time.step_us < whole.time.step_us


@pytest.mark.parametrize("schedule", NEEDS)
def test_what_nothing_runs_is_refused_and_all_else_lowered(schedule: str) -> None:
    if schedule not in PLANNED_ONLY:
        check_lowerable(changed(JOB, layout__schedule=schedule, **NEEDS[schedule]))
        return
    with pytest.raises(LoweringError, match=f"layout.schedule='{schedule}': is planned only"):
        check_lowerable(changed(JOB, layout__schedule=schedule, **NEEDS[schedule]))


FB_OVERLAP = job_of(
    MOE, layout__pp=2, layout__ep=4, batch__gbs=64, batch__seq_len=256, comm__moe_fb_overlap=True, **NPU
)


@pytest.mark.parametrize("layout", [{}, {"vpp": 2}, {"schedule": "dualpipe_v"}])
def test_pairs_hide_what_experts_exchange(layout: dict[str, object]) -> None:
    """Never more than all of it, and a step is shorter; what is held then is both halves'."""
    job = attrs.evolve(FB_OVERLAP, layout=attrs.evolve(FB_OVERLAP.layout, **layout))
    with_pairs, without = plan(job), plan(changed(job, comm__moe_fb_overlap=False))
    assert with_pairs.time.step_us < without.time.step_us
    parts, before = dict(with_pairs.time.parts), dict(without.time.parts)
    assert 0 <= parts["ep"] < before["ep"]
    assert sum(parts.values()) == pytest.approx(with_pairs.time.step_us)
    work = [[rank.activations_bytes + rank.work_bytes for rank in one.memory] for one in (with_pairs, without)]
    assert all(pair >= alone for pair, alone in zip(*work, strict=True))
    with pytest.raises(LoweringError, match=r"comm.moe_fb_overlap=True: is planned only"):
        check_lowerable(job)


def test_nothing_to_hide_is_refused() -> None:
    """Every rule that forwards beside backwards need, at once."""
    wrong = changed(
        FB_OVERLAP,
        layout__ep=1,
        layout__schedule="gpipe",
        layout__etp=2,
        layout__tp=2,
        layout__sp=True,
        comm__overlap_grad_reduce=True,
        comm__moe_dispatcher="allgather",
    )
    with pytest.raises(PlanError) as caught:
        plan(wrong)
    assert {problem.path for problem in caught.value.problems} == {
        "comm.moe_fb_overlap",
        "layout.schedule",
        "layout.etp",
        "comm.overlap_grad_reduce",
        "comm.moe_dispatcher",
    }


INTERLEAVED = changed(
    JOB,
    model=model_preset("llama2-7b"),
    cluster=cluster_preset("atlas-800t-a2"),
    layout__vpp=2,
    layout__tp=2,
    layout__sp=True,
    batch__seq_len=4096,
)
WHOLE = Memory(recompute=FullRecompute(method="block", num_layers=1))


def test_recomputing_ahead_is_faster_and_holds_no_more_than_not_recomputing() -> None:
    """A gradient finds its stage recomputed, the last stage not even dropped; all of one comes back at a time."""
    none, within, ahead = (
        plan(changed(INTERLEAVED, memory=memory))
        for memory in (Memory(), WHOLE, attrs.evolve(WHOLE, recompute_when="advance"))
    )
    assert none.time.step_us < ahead.time.step_us < within.time.step_us
    assert ahead.time.bubble < within.time.bubble
    for least, rank, most in zip(within.memory, ahead.memory, none.memory, strict=True):
        assert least.activations_bytes <= rank.activations_bytes <= most.activations_bytes
    assert not any(action.kind == "R" for action in ahead.schedule.ranks[-1] if action.stage == 7)
    assert 0 < dict(ahead.time.parts)["recompute"] < dict(within.time.parts)["recompute"]


def test_recomputing_in_bubbles_holds_what_1f1b_does() -> None:
    """``pp*vpp`` activations and the inputs of those dropped, for few recomputes, whose collectives are listed."""
    plain = plan(INTERLEAVED)
    bubbles = plan(changed(INTERLEAVED, memory=Memory(recompute_when="bubble")))
    check_schedule(bubbles.schedule, limit=8)
    assert max(peak_in_flight(plain.schedule)) == 11
    assert bubbles.memory[0].activations_bytes < 0.85 * plain.memory[0].activations_bytes
    assert bubbles.time.step_us < 1.05 * plain.time.step_us
    recomputes = [sum(action.kind == "R" for action in row) for row in bubbles.schedule.ranks]
    again = {row.why: row.counts for row in bubbles.collectives if row.why.endswith(" recomputed")}
    assert again["linear_qkv recomputed"] == tuple(4 * count for count in recomputes)  # layers of a stage
    for planned in (plain, bubbles):
        assert sum(part for _, part in planned.time.parts) == pytest.approx(planned.time.step_us)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"layout__vpp": 1, "memory__recompute_when": "bubble", "memory__swap_attention": True},
            ["goes with interleaved 1F1B, not 1f1b", "chooses by itself what to recompute"],
        ),
        ({"memory__recompute_when": "advance"}, ["needs layers that are recomputed whole"]),
    ],
)
def test_where_recomputes_cannot_be_moved_is_told(changes: dict[str, object], lines: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        plan(changed(INTERLEAVED, **changes))
    assert [problem.path for problem in caught.value.problems] == ["memory.recompute_when"] * len(lines)
    for problem, line in zip(caught.value.problems, lines, strict=True):
        assert line in problem.rule


def test_moved_recomputes_are_planned_only() -> None:
    with pytest.raises(LoweringError, match=r"memory.recompute_when='bubble': is planned only"):
        check_lowerable(changed(INTERLEAVED, memory=Memory(recompute_when="bubble")))
