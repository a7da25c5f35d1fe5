"""A rank carries out the actions of its schedule in order, each on what its maker made, and sums every gradient."""

import math
from typing import Any

from hypothesis import given, settings

from ridgeline.core.layout import Layout
from ridgeline.kernels.device import open_device
from ridgeline.parallel.schedule import Schedule, forward_only
from ridgeline.parallel.schedules.gpipe import gpipe
from ridgeline.parallel.traffic import steps_of
from tests.parallel.any_schedule import any_schedule
from tests.pool import Pool

RUNNABLE = any_schedule().filter(lambda schedule: not any(a.kind in "RIW" for row in schedule.ranks for a in row))


@settings(deadline=None, max_examples=10, database=None)
@given(schedule=RUNNABLE)
def test_any_schedule_is_carried_out(ranks: Pool, schedule: Schedule) -> None:
    """Whatever its order and wherever its stages lie: in a loop, or in a V whose neighbours may share a rank.

    Stage s multiplies by 2 + s, and microbatch m starts as 1 + m, so that all numbers are whole and exact.
    """
    results = ranks.run(carried_out, schedule.pp, schedule)
    assert [train for train, _, _ in results] == [list(map(str, actions)) for actions in schedule.ranks]
    evaluation = [list(map(str, actions)) for actions in forward_only(schedule).ranks]
    assert [evaluate for _, evaluate, _ in results] == evaluation
    product = math.prod(range(2, 2 + schedule.num_stages))
    starts = sum(range(1, 1 + schedule.num_microbatches))
    gradients = {stage: value for _, _, found in results for stage, value in found.items()}
    assert gradients == {stage: starts * product // (2 + stage) for stage in range(schedule.num_stages)}


def test_reports_come_in_the_order_of_microbatches(ranks: Pool) -> None:
    """On the ranks of the last stage, and nowhere else."""
    assert ranks.run(reported, 2, gpipe(pp=2, num_microbatches=3)) == [[], [6.0, 12.0, 18.0]]


def carried_out(schedule: Schedule) -> tuple[list[str], list[str], dict[int, int]]:
    """The actions that this rank runs, in training and in evaluation, and the gradients of its stages."""
    with Pipeline(schedule) as pipeline:
        pipeline.run(schedule)
        trained = list(pipeline.log)
        gradients = {stage: round(chunk.module.factor.main_grad.item()) for stage, chunk in pipeline.chunks.items()}
        pipeline.log.clear()
        pipeline.run(forward_only(schedule))
        return trained, list(pipeline.log), gradients


def reported(schedule: Schedule) -> list[float]:
    with Pipeline(schedule) as pipeline:
        return pipeline.run(schedule)


class Pipeline:
    """This rank's stages of a model that multiplies, built as a real one is."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.log = schedule, []

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

    class Multiply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, factor: Any, microbatch: int) -> Any:
            pipeline.log.append(f"{stage}F{microbatch}")
            ctx.microbatch = microbatch
            ctx.save_for_backward(x, factor)
            return x * factor

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            x, factor = ctx.saved_tensors
            pipeline.log.append(f"{stage}B{ctx.microbatch}")
            return gradients[0] * factor, (gradients[0] * x).view(1), None

    class Chunk(MegatronModule):
        def __init__(self) -> None:
            super().__init__(config)
            self.stage, self.received = stage, None
            self.pre_process, self.share_embeddings_and_output_weights = stage == 0, False
            self.factor = torch.nn.Parameter(torch.full((1,), 2.0 + stage))

        def set_input_tensor(self, tensors: Any) -> None:
            self.received = tensors[0]

        def forward(self, microbatch: int) -> Any:
            start = torch.full((1, 1, 1), 1.0 + microbatch) if stage == 0 else self.received
            return Multiply.apply(start, self.factor, microbatch)

    return Chunk()
