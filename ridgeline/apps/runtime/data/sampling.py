"""Which samples a dp rank takes: a pure function of what was consumed, so that a resumed run goes on exactly."""

from collections.abc import Iterator

import attrs


@attrs.frozen(kw_only=True)
class Slice:
    """The part of every step that one dp rank takes, ``gbs`` being a multiple of ``mbs * dp``."""

    mbs: int
    gbs: int
    dp_rank: int
    dp: int

    def __attrs_post_init__(self) -> None:
        assert 0 <= self.dp_rank < self.dp, f"dp_rank={self.dp_rank} lies outside dp={self.dp}"
        assert self.mbs >= 1
        assert self.gbs % (self.mbs * self.dp) == 0, f"gbs={self.gbs} is no multiple of mbs={self.mbs} * dp={self.dp}"

    @property
    def num_microbatches(self) -> int:
        """Microbatches of a step on each dp rank."""
        return self.gbs // (self.mbs * self.dp)


def microbatch_samples(part: Slice, *, consumed_samples: int, microbatch: int) -> range:
    """Indices of the samples of a microbatch.

    Over all dp ranks, the microbatches of a step are ``consumed_samples .. consumed_samples + gbs - 1``, each once, for
    any dp.

    Args:
        part: The rank's part of a step.
        consumed_samples: Samples of the steps before this one.
        microbatch: 0 <= microbatch < num_microbatches.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/training/datasets/data_samplers.py, ``MegatronPretrainingSampler``.

    Example:
        >>> microbatch_samples(Slice(mbs=2, gbs=8, dp_rank=1, dp=2), consumed_samples=80, microbatch=1)
        range(86, 88)
    """
    first = consumed_samples + (microbatch * part.dp + part.dp_rank) * part.mbs
    return range(first, first + part.mbs)


def run_samples(part: Slice, *, consumed_samples: int, stop_samples: int) -> Iterator[range]:
    """The microbatches in order, from ``consumed_samples`` on, as long as a whole step ends by ``stop_samples``."""
    for consumed in range(consumed_samples, stop_samples - part.gbs + 1, part.gbs):
        for microbatch in range(part.num_microbatches):
            yield microbatch_samples(part, consumed_samples=consumed, microbatch=microbatch)
