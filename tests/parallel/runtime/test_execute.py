"""A rank carries out the actions of its schedule in order, each on what its maker made, and sums every gradient."""

import math
import weakref
from functools import partial
from typing import Any, NamedTuple

from hypothesis import given, settings

from ridgeline.core.layout import Layout
from ridgeline.kernels.device import open_device
from ridgeline.parallel.schedule import Schedule, forward_only
from ridgeline.parallel.schedules.gpipe import gpipe
from ridgeline.parallel.simulate import peak_in_flight
from ridgeline.parallel.traffic import steps_of
from tests.parallel.any_schedule import any_schedule
from tests.pool import Pool

RUNNABLE = any_schedule().filter(
    lambda schedule: not any(action.kind == "R" for row in schedule.ranks for action in row)
)


@settings(deadline=None, max_examples=10, database=None)
@given(schedule=RUNNABLE)
def test_any_schedule_is_carried_out(ranks: Pool, schedule: Schedule) -> None:
    """Whatever its order and wherever its stages lie: in a loop, or in a V whose neighbours may share a rank.

    Stages multiply by 2 or 3, and microbatch m starts as 1 + m, so that all numbers are whole and exact. A rank holds
    as many activations at a time as the schedule says, to their backward or the weight gradient that waits.
    """
    results = ranks.run(carried_out, schedule.pp, schedule)
    assert [result.trained for result in results] == [list(map(str, actions)) for actions in schedule.ranks]
    assert tuple(result.most_held for result in results) == peak_in_flight(schedule)
    evaluation = [list(map(str, actions)) for actions in forward_only(schedule).ranks]
    assert [result.evaluated for result in results] == evaluation
    product = math.prod(map(factor_of, range(schedule.num_stages)))
    starts = sum(range(1, 1 + schedule.num_microbatches))
    gradients = {stage: value for result in results for stage, value in result.gradients.items()}
    assert gradients == {stage: starts * product // factor_of(stage) for stage in range(schedule.num_stages)}


def test_reports_come_in_the_order_of_microbatches(ranks: Pool) -> None:
    """On the ranks of the last stage, and nowhere else."""
    assert ranks.run(reported, 2, gpipe(pp=2, num_microbatches=3)) == [[], [6.0, 12.0, 18.0]]


def factor_of(stage: int) -> int:
    return 2 + stage % 2


class CarriedOut(NamedTuple):
    """The actions that a rank ran, in training and in evaluation, the most activations it held, and its gradients."""

    trained: list[str]
    evaluated: list[str]
    most_held: int
    gradients: dict[int, int]


def carried_out(schedule: Schedule) -> CarriedOut:
    with Pipeline(schedule) as pipeline:
        pipeline.run(schedule)
        trained, most_held = list(pipeline.log), pipeline.most_held
        gradients = {stage: round(chunk.module.factor.main_grad.item()) for stage, chunk in pipeline.chunks.items()}
        pipeline.log.clear()
        pipeline.run(forward_only(schedule))
        return CarriedOut(trained, list(pipeline.log), most_held, gradients)


def reported(schedule: Schedule) -> list[float]:
    with Pipeline(schedule) as pipeline:
        return pipeline.run(schedule)


class Held:
    """An activation, to be counted."""


def weight_gradient(gradient: Any, x: Any, held: Held) -> Any:
    return ((gradient * x).view(1),)


class Pipeline:
    """This rank's stages of a model that multiplies, built as a real one is."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.log = schedule, []
        self.held, self.most_held = weakref.WeakSet(), 0

    def __enter__(self) -> Any:
        from contextlib import ExitStack

        import torch
        from megatron.core.distributed import DistributedDataParallelConfig
        from megatron.core.transformer import TransformerConfig

        from ridgeline.parallel.runtime.gradients import wrap_chunks
        from ridgeline.parallel.runtime.groups import process_groups

        schedule, self.stack = self.schedule, ExitStack()
        self.stack.enter_context(open_device("cpu").bridge())
        self.stack.enter_context(process_groups(Layout(pp=schedule.pp), world_size=schedule.pp, seed=0))
        config = TransformerConfig(
            num_layers=1, hidden_size=1, num_attention_heads=1, pipeline_dtype=torch.float32, batch_p2p_comm=False
        )
        self.rank = torch.distributed.get_rank()
        stages = sorted({action.stage for action in schedule.ranks[self.rank]})
        built = wrap_chunks(
            [chunk_of(self, config, stage) for stage in stages], config, DistributedDataParallelConfig()
        )
        self.chunks = dict(zip(stages, built, strict=True))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def hold(self) -> Any:
        """What lives as long as whoever keeps it."""
        held = Held()
        self.held.add(held)
        self.most_held = max(self.most_held, len(self.held))
        return held

    def run(self, schedule: Schedule) -> list[Any]:
        import torch

        from ridgeline.parallel.runtime.execute import run_schedule

        owners = {action.stage: rank for rank, actions in enumerate(schedule.ranks) for action in actions}

        def forward(chunk: Any, microbatch: int) -> Any:
            output = chunk(microbatch)
            last = chunk.module.stage == schedule.num_stages - 1
            return (output.sum(), output.item()) if last else (output, None)

        for chunk in self.chunks.values():
            chunk.zero_grad_buffer()
        return run_schedule(
            self.chunks,
            forward,
            steps=steps_of(schedule)[self.rank],
            owners=[owners[stage] for stage in range(schedule.num_stages)],
            microbatches=range(schedule.num_microbatches),
            seq_len=1,
            mbs=1,
            device=torch.device("cpu"),
        )


def chunk_of(pipeline: Pipeline, config: Any, stage: int) -> Any:
    """A stage that multiplies by one number, and writes down what it runs."""
    import torch
    from megatron.core.transformer.module import MegatronModule

    from ridgeline.parallel.runtime.deferred import offer

    class Multiply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, factor: Any, microbatch: int) -> Any:
            pipeline.log.append(f"{stage}F{microbatch}")
            ctx.microbatch, ctx.held = microbatch, pipeline.hold()
            ctx.save_for_backward(x, factor)
            return x * factor

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            x, factor = ctx.saved_tensors
            product = partial(weight_gradient, gradients[0], x, ctx.held)
            chunk, action = pipeline.chunks[stage], f"{stage}W{ctx.microbatch}"
            waits = offer(chunk.deferred, (factor,), lambda: (pipeline.log.append(action), product())[1])
            pipeline.log.append(f"{stage}{'I' if waits else 'B'}{ctx.microbatch}")
            return gradients[0] * factor, None if waits else product()[0], None

    class Chunk(MegatronModule):
        def __init__(self) -> None:
            super().__init__(config)
            self.stage, self.received = stage, None
            self.pre_process, self.share_embeddings_and_output_weights = stage == 0, False
            self.factor = torch.nn.Parameter(torch.full((1,), float(factor_of(stage))))

        def set_input_tensor(self, tensors: Any) -> None:
            self.received = tensors[0]

        def forward(self, microbatch: int) -> Any:
            start = torch.full((1, 1, 1), 1.0 + microbatch) if stage == 0 else self.received
            return Multiply.apply(start, self.factor, microbatch)

    return Chunk()
