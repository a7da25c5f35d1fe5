"""Which samples a rank takes."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.apps.runtime.data.sampling import Slice, microbatch_samples, run_samples


def megatron_sampler(total: int, consumed: int, mbs: int, dp_rank: int, dp: int) -> Iterator[list[int]]:
    """NVIDIA/Megatron-LM core_v0.16.1, megatron/training/datasets/data_samplers.py, ``MegatronPretrainingSampler``."""
    batch: list[int] = []
    for index in range(consumed, total):
        batch.append(index)
        if len(batch) == mbs * dp:
            yield batch[dp_rank * mbs : (dp_rank + 1) * mbs]
            batch = []


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """mbs, dp, gbs and steps consumed."""
    mbs, dp = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return mbs, dp, mbs * dp * draw(st.integers(1, 4)), draw(st.integers(0, 9))


@given(step=steps())
@settings(deadline=None)
def test_a_step_is_parted_among_ranks_and_microbatches(step: tuple[int, int, int, int]) -> None:
    """Every sample of a step is taken once, and the set is the same for any dp."""
    mbs, dp, gbs, done = step
    parts = [Slice(mbs=mbs, gbs=gbs, dp_rank=rank, dp=dp) for rank in range(dp)]
    taken = [
        i
        for part in parts
        for microbatch in range(part.num_microbatches)
        for i in microbatch_samples(part, consumed_samples=done * gbs, microbatch=microbatch)
    ]
    assert sorted(taken) == list(range(done * gbs, (done + 1) * gbs))


@given(step=steps(), more=st.integers(0, 30))
@settings(deadline=None)
def test_the_order_is_that_of_megatrons_sampler(step: tuple[int, int, int, int], more: int) -> None:
    """From any point of a run, every rank takes what Megatron's own sampler gives it, up to the last whole step."""
    mbs, dp, gbs, done = step
    stop = done * gbs + more
    for rank in range(dp):
        part = Slice(mbs=mbs, gbs=gbs, dp_rank=rank, dp=dp)
        ours = [list(samples) for samples in run_samples(part, consumed_samples=done * gbs, stop_samples=stop)]
        whole = more // gbs * part.num_microbatches
        assert ours == list(megatron_sampler(stop, done * gbs, mbs, rank, dp))[:whole]
        assert len(ours) == whole


@given(step=steps(), steps_left=st.integers(0, 5))
@settings(deadline=None)
def test_resuming_takes_up_where_it_stopped(step: tuple[int, int, int, int], steps_left: int) -> None:
    """A run from the start, less its first steps, is the run that starts behind them."""
    mbs, dp, gbs, done = step
    part = Slice(mbs=mbs, gbs=gbs, dp_rank=dp - 1, dp=dp)
    stop = (done + steps_left) * gbs
    whole = list(run_samples(part, consumed_samples=0, stop_samples=stop))
    assert (
        list(run_samples(part, consumed_samples=done * gbs, stop_samples=stop)) == whole[done * part.num_microbatches :]
    )
