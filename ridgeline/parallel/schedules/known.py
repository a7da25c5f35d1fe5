"""Schedules by name."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.errors import PlanError, Problem, nearest
from ridgeline.core.frozen import frozen
from ridgeline.parallel.schedule import Schedule


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


class Generator(NamedTuple):
    """Where a schedule's generator is: loaded when it is asked for, since a plan needs but one.

    Attributes:
        module: In this folder.
        function: Its name there.
        takes: Fields of the pipeline that it is called with, beside ``pp`` and ``num_microbatches``.
        options: Further arguments.
    """

    module: str
    function: str
    takes: tuple[str, ...] = ()
    options: Mapping[str, bool] = MappingProxyType({})


_TIMES = ("stage_us", "p2p_us")

SCHEDULES: Mapping[str, Generator] = MappingProxyType(
    {
        "1f1b": Generator("one_f_one_b", "one_f_one_b", ("vpp", "microbatch_group_size")),
        "interleaved_1f1b": Generator("interleaved", "interleaved_1f1b", ("vpp", "microbatch_group_size")),
        "gpipe": Generator("gpipe", "gpipe"),
        "zb_h1": Generator("zero_bubble", "zb_h1", _TIMES),
        "zb_2p": Generator("zero_bubble", "zb_2p", _TIMES),
        "zb_v": Generator("zero_bubble", "zb_v", _TIMES),
        "dualpipe_v": Generator("dualpipe", "dualpipe_v"),
        "dualpipe_v_split": Generator("dualpipe", "dualpipe_v", options=MappingProxyType({"split_cooldown": True})),
        "seq1f1b": Generator("seq1f1b", "seq1f1b", ("slices",)),
        "zb_vpp": Generator("zero_bubble", "zb_vpp", ("vpp", *_TIMES)),
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
    module, function, takes, options = SCHEDULES[name]
    generate = getattr(import_module(f"ridgeline.parallel.schedules.{module}"), function)
    fields = {field: getattr(pipeline, field) for field in ("pp", "num_microbatches", *takes)}
    return generate(**fields, **options)
