"""The schedules by name: as printed, by their laws, and as Megatron-core really executes them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import PlanError
from ridgeline.parallel.schedule import Schedule, forward_only
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.known import Pipeline, plan_schedule
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.simulate import peak_in_flight
from ridgeline.parallel.validate import check_schedule
from tests.pool import Pool

QUIET = settings(deadline=None, max_examples=60, database=None)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule by name, with numbers that are legal for it."""
    if draw(st.booleans()):
        return one_f_one_b(pp=draw(st.integers(1, 8)), num_microbatches=draw(st.integers(1, 20)))
    pp, vpp = draw(st.integers(2, 6)), draw(st.integers(2, 4))
    group = draw(st.integers(pp, pp + 4))
    rest = draw(st.sampled_from([0, *range(pp, group)]))
    return interleaved_1f1b(
        pp=pp, vpp=vpp, num_microbatches=group * draw(st.integers(1, 3)) + rest, microbatch_group_size=group
    )


def test_1f1b_as_printed() -> None:
    """The picture of PipeDream-Flush: warmup, one forward one backward, cooldown."""
    assert str(one_f_one_b(pp=4, num_microbatches=6)).splitlines() == [
        "0: 0F0 0F1 0F2 0F3 0B0 0F4 0B1 0F5 0B2 0B3 0B4 0B5",
        "1: 1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1B4 1B5",
        "2: 2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2F5 2B4 2B5",
        "3: 3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4 3F5 3B5",
    ]


def test_1f1b_with_fewer_microbatches_than_ranks() -> None:
    """Ranks that never reach their steady state run all forwards, then all backwards."""
    assert str(one_f_one_b(pp=4, num_microbatches=2)).splitlines() == [
        "0: 0F0 0F1 0B0 0B1",
        "1: 1F0 1F1 1B0 1B1",
        "2: 2F0 2F1 2B0 2B1",
        "3: 3F0 3B0 3F1 3B1",
    ]


def test_one_rank_accumulates_gradients() -> None:
    """Without a pipeline each microbatch is forward, then backward."""
    assert str(one_f_one_b(pp=1, num_microbatches=3)) == "0: 0F0 0B0 0F1 0B1 0F2 0B2"


def test_interleaved_as_printed() -> None:
    """Figure 4 of arXiv 2104.04473: chunks change after each group of pp microbatches."""
    assert str(interleaved_1f1b(pp=2, vpp=2, num_microbatches=4)).splitlines() == [
        "0: 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3",
        "1: 1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3",
    ]


def test_larger_groups_as_printed() -> None:
    """The example in Megatron-core's source: PP2 N3M5 with VP2 runs chunks 0001110011 on microbatches 0120123434."""
    forwards = forward_only(interleaved_1f1b(pp=2, vpp=2, num_microbatches=5, microbatch_group_size=3))
    assert str(forwards).splitlines() == [
        "0: 0F0 0F1 0F2 2F0 2F1 2F2 0F3 0F4 2F3 2F4",
        "1: 1F0 1F1 1F2 3F0 3F1 3F2 1F3 1F4 3F3 3F4",
    ]


@QUIET
@given(schedules())
def test_every_schedule_is_valid(schedule: Schedule) -> None:
    """Each action once, in its turn, without deadlock; the forwards alone as well."""
    check_schedule(schedule)
    check_schedule(forward_only(schedule), evaluation=True)


@QUIET
@given(schedules())
def test_activations_are_bounded(schedule: Schedule) -> None:
    """1F1B holds pp - pp_rank microbatches; interleaving holds the warmup's and one more, never one a microbatch."""
    pp, vpp, count = schedule.pp, schedule.vpp, schedule.num_microbatches
    if schedule.name == "1f1b":
        assert peak_in_flight(schedule) == tuple(min(pp - pp_rank, count) for pp_rank in range(pp))
    elif count % pp == 0 and schedule == interleaved_1f1b(pp=pp, vpp=vpp, num_microbatches=count):
        warmup = [2 * (pp - pp_rank - 1) + (vpp - 1) * pp for pp_rank in range(pp)]
        assert peak_in_flight(schedule) == tuple(min(number + 1, count * vpp) for number in warmup)


@pytest.mark.parametrize(
    ("name", "numbers", "line"),
    [
        ("1f1b_interleaved", {}, "layout.schedule='1f1b_interleaved': unknown; did you mean 'interleaved_1f1b'"),
        ("1f1b", {"vpp": 2}, "layout.vpp=2: 1f1b runs one chunk a rank; use 1 or 'interleaved_1f1b'"),
        ("1f1b", {"microbatch_group_size": 4}, "layout.microbatch_group_size=4: 1f1b runs no groups"),
        (
            "interleaved_1f1b",
            {"pp": 1},
            "layout.pp=1: interleaved_1f1b needs at least 2 pipeline ranks.*\n.*layout.vpp=1: .* at least 2 chunks",
        ),
        (
            "interleaved_1f1b",
            {"vpp": 2, "num_microbatches": 6},
            "num_microbatches=6: leaves 2 after groups of 4; the rest must be 0 or at least pp=4; use 4 or 8",
        ),
        (
            "interleaved_1f1b",
            {"vpp": 2, "num_microbatches": 12, "microbatch_group_size": 10},
            "num_microbatches=12: leaves 2 .*; use 10 or 14",
        ),
        (
            "interleaved_1f1b",
            {"vpp": 2, "num_microbatches": 3},
            r"layout.microbatch_group_size=4: must lie in pp \.\. num_microbatches = 4 \.\. 3; raise num_microbatches",
        ),
        (
            "interleaved_1f1b",
            {"vpp": 2, "microbatch_group_size": 2},
            r"layout.microbatch_group_size=2: must lie in .* 4 \.\. 8; use 4",
        ),
    ],
)
def test_schedules_that_do_not_exist_say_why(name: str, numbers: dict[str, Any], line: str) -> None:
    """What Megatron-core would refuse on every rank is refused here once, with numbers that work."""
    with pytest.raises(PlanError, match=line):
        plan_schedule(name, Pipeline(**{"pp": 4, "num_microbatches": 8, **numbers}))


def test_way_out_of_a_bad_number_of_microbatches_works() -> None:
    """Both numbers that the message proposes have a schedule."""
    for group in (4, 7, 10):
        for count in range(group, 3 * group):
            numbers: dict[str, Any] = {"pp": 4, "vpp": 2, "microbatch_group_size": group}
            try:
                interleaved_1f1b(num_microbatches=count, **numbers)
            except PlanError as error:
                below, above = error.problems[0].way_out.removeprefix("use ").split(" or ")
                assert int(below) < count < int(above)
                for proposed in (below, above):
                    interleaved_1f1b(num_microbatches=int(proposed), **numbers)


@pytest.mark.parametrize(
    ("pp", "vpp", "num_microbatches", "group"),
    [
        (1, 1, 3, None),
        (2, 1, 1, None),
        (2, 1, 5, None),
        (4, 1, 3, None),
        (4, 1, 7, None),
        (2, 2, 4, None),
        (2, 2, 5, 3),
        (2, 3, 2, None),
        (4, 2, 4, None),
        (4, 2, 8, None),
        (4, 2, 5, 5),
        (4, 2, 11, 7),
    ],
)
def test_megatron_executes_the_plan(ranks: Pool, pp: int, vpp: int, num_microbatches: int, group: int | None) -> None:
    """The forwards and backwards that Megatron-core runs on each rank are the planned actions, in their order."""
    name = "1f1b" if vpp == 1 else "interleaved_1f1b"
    schedule = plan_schedule(
        name, Pipeline(pp=pp, vpp=vpp, num_microbatches=num_microbatches, microbatch_group_size=group)
    )
    runs = ranks.run(executed, pp, pp, vpp, num_microbatches, group)
    assert [train for train, _ in runs] == [list(map(str, actions)) for actions in schedule.ranks]
    evaluation = [list(map(str, actions)) for actions in forward_only(schedule).ranks]
    assert [evaluate for _, evaluate in runs] == evaluation


def executed(pp: int, vpp: int, num_microbatches: int, group: int | None) -> tuple[list[str], list[str]]:
    """The actions that Megatron-core runs on this rank, in training and in evaluation."""
    from ridgeline.kernels.device import open_device

    with open_device("cpu").bridge():
        import torch
        from megatron.core import parallel_state
        from megatron.core.enums import ModelType
        from megatron.core.pipeline_parallel import get_forward_backward_func
        from megatron.core.transformer import TransformerConfig

        virtual = vpp if vpp > 1 else None
        parallel_state.initialize_model_parallel(1, pp, virtual, create_gloo_process_groups=False)
        config = TransformerConfig(
            num_layers=pp * vpp,
            hidden_size=4,
            num_attention_heads=1,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=virtual,
            pipeline_dtype=torch.float32,
            overlap_p2p_comm=vpp > 1,
            batch_p2p_comm=vpp == 1,
            microbatch_group_size_per_vp_stage=group or pp,
        )
        log: list[str] = []

        class Recorded(torch.autograd.Function):
            @staticmethod
            def forward(context: Any, tensor: Any, stage: int, microbatch: int) -> Any:
                log.append(f"{stage}F{microbatch}")
                context.name = f"{stage}B{microbatch}"
                return tensor + 1

            @staticmethod
            def backward(context: Any, *gradients: Any) -> Any:
                log.append(context.name)
                return gradients[0], None, None

        class Chunk(torch.nn.Module):
            """Adds 1 to what it is given, so that a tensor tells its stage and microbatch."""

            def __init__(self, stage: int) -> None:
                super().__init__()
                self.config, self.model_type, self.stage = config, ModelType.encoder_or_decoder, stage
                self.first = torch.nn.Parameter(torch.zeros(1))
                self.received = None

            def set_input_tensor(self, tensors: Any) -> None:
                self.received = tensors[0] if isinstance(tensors, list) else tensors

            def forward(self, microbatch: int) -> Any:
                start = torch.full((1, 1, 4), 100.0 * microbatch) + self.first if self.stage == 0 else self.received
                assert torch.all(start == 100 * microbatch + self.stage)
                return Recorded.apply(start, self.stage, microbatch)

        def forward_step(microbatches: Any, model: Any) -> Any:
            return model(next(microbatches)), lambda output: (output.sum(), {})

        rank = parallel_state.get_pipeline_model_parallel_rank()
        chunks = [Chunk(chunk * pp + rank) for chunk in range(vpp)]
        logs = []
        for evaluation in (False, True):
            iterators = [iter(range(num_microbatches)) for _ in chunks]
            get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iterators if vpp > 1 else iterators[0],
                model=chunks if vpp > 1 else chunks[0],
                num_microbatches=num_microbatches,
                seq_length=1,
                micro_batch_size=1,
                forward_only=evaluation,
            )
            logs.append(list(log))
            log.clear()
    return logs[0], logs[1]
