"""Schedules by name."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ridgeline.core.errors import PlanError, Problem, nearest
from ridgeline.core.frozen import frozen
from ridgeline.parallel.schedule import Schedule
from ridgeline.parallel.schedules.dualpipe import dualpipe_v
from ridgeline.parallel.schedules.gpipe import gpipe
from ridgeline.parallel.schedules.interleaved import interleaved_1f1b
from ridgeline.parallel.schedules.one_f_one_b import one_f_one_b
from ridgeline.parallel.schedules.seq1f1b import seq1f1b
from ridgeline.parallel.schedules.zero_bubble import zb_2p, zb_h1, zb_v, zb_vpp


@frozen(kw_only=True)
class Pipeline:
    """What a schedule is made for; each takes of it what it needs.

    Attributes:
        pp: Pipeline ranks.
        vpp: Chunks per rank.
        num_microbatches: Microbatches of one step.
        microbatch_group_size: Of interleaved 1F1B.
        slices: Of each sequence, in Seq1F1B.
        stage_us: Times of each stage, as ``simulate`` takes them, for which an order is chosen.
        p2p_us: Times of transfers, as ``simulate`` takes them.
    """

    pp: int
    vpp: int = 1
    num_microbatches: int
    microbatch_group_size: int | None = None
    slices: int = 1
    stage_us: Mapping[str, Sequence[float]] | None = None
    p2p_us: float | Sequence[float] = 0.0


SCHEDULES: Mapping[str, Callable[[Pipeline], Schedule]] = MappingProxyType(
    {
        "1f1b": lambda p: one_f_one_b(
            pp=p.pp, vpp=p.vpp, num_microbatches=p.num_microbatches, microbatch_group_size=p.microbatch_group_size
        ),
        "interleaved_1f1b": lambda p: interleaved_1f1b(
            pp=p.pp, vpp=p.vpp, num_microbatches=p.num_microbatches, microbatch_group_size=p.microbatch_group_size
        ),
        "gpipe": lambda p: gpipe(pp=p.pp, num_microbatches=p.num_microbatches),
        "zb_h1": lambda p: zb_h1(pp=p.pp, num_microbatches=p.num_microbatches, stage_us=p.stage_us, p2p_us=p.p2p_us),
        "zb_2p": lambda p: zb_2p(pp=p.pp, num_microbatches=p.num_microbatches, stage_us=p.stage_us, p2p_us=p.p2p_us),
        "zb_v": lambda p: zb_v(pp=p.pp, num_microbatches=p.num_microbatches, stage_us=p.stage_us, p2p_us=p.p2p_us),
        "dualpipe_v": lambda p: dualpipe_v(pp=p.pp, num_microbatches=p.num_microbatches),
        "dualpipe_v_split": lambda p: dualpipe_v(pp=p.pp, num_microbatches=p.num_microbatches, split_cooldown=True),
        "seq1f1b": lambda p: seq1f1b(pp=p.pp, num_microbatches=p.num_microbatches, slices=p.slices),
        "zb_vpp": lambda p: zb_vpp(
            pp=p.pp, vpp=p.vpp, num_microbatches=p.num_microbatches, stage_us=p.stage_us, p2p_us=p.p2p_us
        ),
    }
)
"""Name -> generator."""


def plan_schedule(name: str, pipeline: Pipeline) -> Schedule:
    """The schedule of this name, for this pipeline.

    Raises:
        PlanError: The name is unknown, or its schedule does not exist for these numbers.
    """
    if name not in SCHEDULES:
        raise PlanError(Problem("layout.schedule", name, "unknown", nearest(name, SCHEDULES)))
    return SCHEDULES[name](pipeline)
