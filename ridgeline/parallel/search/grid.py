"""The finite grid of layouts that a search is over: the values of each axis, and which combinations are points of it.

    Grid    the values of every axis, and what was left out of them
    Point   one value of each axis; ``job_at`` is the job there

A combination is a point when its degrees divide what they must. Whether a plan exists there is the planner's to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import attrs

from ridgeline.core.errors import Problem, SpecError, divisors, nearest
from ridgeline.core.fields import literal_choices, union_members
from ridgeline.core.frozen import frozen
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Mlp, Moe
from ridgeline.parallel.stages import even_counts

FEWER_FIRST = (-1, 0, 1)
FEWER_LAST = (0, 1, 2, 3, 4)
INTERLEAVED = ("interleaved_1f1b", "zb_vpp")
LARGEST_VPP = 8
LARGEST_MBS = 8


class Shape(NamedTuple):
    """What the operations of a layer on one rank depend on."""

    tp: int
    cp: int
    cp_algorithm: str
    sp: bool
    ep: int
    etp: int
    mbs: int
    ulysses: int = 1
    moe_dispatcher: str = "alltoall"
    moe_overlap: tuple[str, ...] = ()


Recompute: TypeAlias = SelectiveRecompute | FullRecompute | None


class Scheme(NamedTuple):
    """How many ranks the layers are divided over, and what each keeps, recomputes and shards."""

    pp: int
    recompute: Recompute = None
    swap_attention: bool = False
    distributed_optimizer: bool = True
    swap_optimizer: bool = False
    masters: str = "fp32"


class Pipeline(NamedTuple):
    """In which parts and in which order the layers run."""

    vpp: int
    schedule: str | None
    stages: tuple[int, ...] | None


class Point(NamedTuple):
    """One layout of a grid."""

    shape: Shape
    scheme: Scheme
    pipeline: Pipeline


PATHS: Mapping[str, str] = MappingProxyType(
    {
        **{name: f"layout.{name}" for name in ("tp", "cp", "cp_algorithm", "ulysses", "sp", "ep", "etp")},
        "mbs": "batch.mbs",
        **{name: f"comm.{name}" for name in ("moe_dispatcher", "moe_overlap")},
        "pp": "layout.pp",
        **{
            name: f"memory.{name}"
            for name in ("recompute", "swap_attention", "distributed_optimizer", "swap_optimizer")
        },
        "masters": "precision.masters",
        **{name: f"layout.{name}" for name in ("vpp", "schedule", "stages")},
    }
)
"""Axis -> the field of a job that it sets, in the order in which a search branches."""


ASKED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "moe_dispatcher": ("alltoall", "alltoall_seq", "allgather"),
        "moe_overlap": ((), ("shared_experts",)),
        "swap_attention": (False, True),
        "swap_optimizer": (False, True),
        "masters": ("fp32", "low_bits"),
    }
)
"""Axes that a grid holds to the job's own value unless they are given, and all their values."""


@frozen
class LeftOut:
    """Values of an axis that are not searched, and why."""

    axis: str
    values: tuple[Any, ...]
    why: str


@frozen(kw_only=True)
class Grid:
    """The values of every axis.

    Attributes:
        stages: Lists of layers by stage that are searched, as long as their ``pp*vpp`` stages; None stands for those
            that ``stage_lists`` gives for each number of stages.
        left_out: What was left out of the axes, and why.
        given: Axes whose values were given, not derived.
    """

    tp: tuple[int, ...]
    cp: tuple[int, ...]
    cp_algorithm: tuple[str, ...]
    ulysses: tuple[int, ...]
    sp: tuple[bool, ...]
    ep: tuple[int, ...]
    etp: tuple[int, ...]
    mbs: tuple[int, ...]
    moe_dispatcher: tuple[str, ...]
    moe_overlap: tuple[tuple[str, ...], ...]
    pp: tuple[int, ...]
    recompute: tuple[Recompute, ...]
    swap_attention: tuple[bool, ...]
    distributed_optimizer: tuple[bool, ...]
    swap_optimizer: tuple[bool, ...]
    masters: tuple[str, ...]
    vpp: tuple[int, ...]
    schedule: tuple[str | None, ...]
    stages: tuple[tuple[int, ...] | None, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()
    given: tuple[str, ...] = ()


def grid_of(job: Job, **given: Sequence[Any]) -> Grid:
    """The grid of a job: every degree that its model, batch and cluster allow.

    Args:
        job: Its layout, microbatch and recomputation are replaced; all else stays.
        given: Values of an axis, instead of those derived: ``tp=(1, 2)``.

    Raises:
        SpecError: No axis has such a name, or no value is given for one.
    """
    problems = [Problem(f"grid.{name}", "", "no such axis", nearest(name, PATHS)) for name in given.keys() - PATHS]
    problems += [
        Problem(f"grid.{name}", tuple(values), "holds no value") for name, values in given.items() if not values
    ]
    if problems:
        raise SpecError(problems)
    values = {**_derived(job), **{name: tuple(values) for name, values in given.items()}}
    return Grid(**values, given=tuple(given), left_out=tuple(_unasked(job, values, given)))


def _unasked(job: Job, values: Mapping[str, tuple[Any, ...]], given: Mapping[str, Sequence[Any]]) -> Iterator[LeftOut]:
    """Axes that hold what the job says, since each would multiply a search: the values that wait to be given."""
    idle = set() if any(moe.shared_ffn for moe in job.model.moes) else {"moe_overlap"}
    idle |= set() if job.model.moes else {"moe_dispatcher"}
    for axis, every in ASKED.items():
        if axis not in given and axis not in idle:
            others = tuple(value for value in every if value not in values[axis])
            yield LeftOut(axis, others, "is searched where it is given; each such axis multiplies the grid")


def _derived(job: Job) -> dict[str, tuple[Any, ...]]:
    world, node, seq_len = job.cluster.world_size, job.cluster.devices_per_node, job.batch.seq_len
    blocks = job.model.kinds
    attentions = [block.mixer for block in blocks if isinstance(block.mixer, Attention)]
    mlps = [block.feed_forward for block in blocks if isinstance(block.feed_forward, Mlp)]
    moes = [block.feed_forward for block in blocks if isinstance(block.feed_forward, Moe)]
    return {
        "tp": tuple(
            tp
            for tp in divisors(node)
            if all(mixer.heads % tp == 0 for mixer in attentions)
            and all(mixer.kv_heads % tp == 0 or tp % mixer.kv_heads == 0 for mixer in attentions)
            and all(mlp.ffn_hidden % tp == 0 for mlp in mlps)
        ),
        "cp": tuple(cp for cp in divisors(world) if cp <= node and seq_len % cp == 0),
        "cp_algorithm": _choices(Layout, "cp_algorithm"),
        "ulysses": (1, *(degree for degree in divisors(node) if 1 < degree < node)),
        "sp": (True,) if moes else (True, False),
        "ep": tuple(ep for ep in divisors(world) if all(moe.experts % ep == 0 for moe in moes)) if moes else (1,),
        "etp": tuple(etp for etp in divisors(node) if all(moe.ffn_hidden % etp == 0 for moe in moes)) if moes else (1,),
        "mbs": tuple(mbs for mbs in _doublings(LARGEST_MBS) if job.batch.gbs % mbs == 0),
        "moe_dispatcher": (job.comm.moe_dispatcher,),
        "moe_overlap": (job.comm.moe_overlap,),
        "pp": tuple(pp for pp in divisors(world) if pp <= job.model.num_layers),
        "recompute": (
            None,
            SelectiveRecompute(modules=("core_attn",)),
            SelectiveRecompute(modules=("layernorm",)),
            *((SelectiveRecompute(modules=("layernorm", "mlp")),) if mlps else ()),
            *((SelectiveRecompute(modules=("layernorm", "moe")),) if moes else ()),
            FullRecompute(),
            *(FullRecompute(method="block", num_layers=layers) for layers in _doublings(job.model.num_layers // 2)),
        ),
        "swap_attention": (job.memory.swap_attention,),
        "distributed_optimizer": (True, False),
        "swap_optimizer": (job.memory.swap_optimizer,),
        "masters": (job.precision.masters,),
        "vpp": _doublings(LARGEST_VPP),
        "schedule": tuple(name for name in _choices(Layout, "schedule") if name != "seq1f1b" or job.layout.slices > 1),
    }


def _doublings(largest: int) -> tuple[int, ...]:
    return tuple(1 << power for power in range(largest.bit_length()))


def _choices(spec: type[Any], name: str) -> tuple[Any, ...]:
    """The words that a field of a spec takes."""
    annotation = attrs.fields_dict(spec)[name].type
    return tuple(choice for member in union_members(annotation) for choice in literal_choices(member))


def job_at(job: Job, point: Point) -> Job:
    """The job with the layout of a point."""
    fields: dict[str, dict[str, Any]] = {"layout": {"noop_layers": (), "microbatch_group_size": None}}
    for axes in point:
        for axis, value in zip(axes._fields, axes, strict=True):
            part, _, field = PATHS[axis].partition(".")
            fields.setdefault(part, {})[field] = value
    if point.pipeline.schedule != "seq1f1b":
        fields["layout"]["slices"] = 1
    return attrs.evolve(job, **{part: attrs.evolve(getattr(job, part), **values) for part, values in fields.items()})


def changed(point: Point, axis: str, value: Any) -> Point:
    """The point with one axis at another value."""
    for name, part in point._asdict().items():
        if axis in part._fields:
            return point._replace(**{name: part._replace(**{axis: value})})
    raise KeyError(axis)


def points(job: Job, grid: Grid) -> Iterator[Point]:
    """Every point of a grid."""
    for shape in shapes(job, grid):
        for scheme in schemes(job, grid, shape):
            for pipeline, _ in pipelines(job, grid, scheme.pp, first=first_layers(scheme.recompute)):
                yield Point(shape, scheme, pipeline)


def shapes(job: Job, grid: Grid) -> Iterator[Shape]:
    """What the layers of a rank may be, over all numbers of stages."""
    for tp, cp, etp in product(grid.tp, grid.cp, grid.etp):
        ranks = job.cluster.world_size
        for (cp_algorithm, ulysses), sp, ep, mbs, dispatcher, overlap in product(
            context_algorithms(grid, cp),
            (False,) if tp == 1 else grid.sp,
            [ep for ep in grid.ep if ranks % (ep * etp) == 0],
            grid.mbs,
            grid.moe_dispatcher,
            grid.moe_overlap,
        ):
            if ranks % (tp * cp) == 0:
                yield Shape(tp, cp, cp_algorithm, sp, ep, etp, mbs, ulysses, dispatcher, overlap)


def context_algorithms(grid: Grid, cp: int) -> tuple[tuple[str, int], ...]:
    """How so many ranks may share a sequence, with the degree of its inner exchange of heads where there is one."""
    if cp == 1:
        return ((next((name for name in grid.cp_algorithm if name != "hybrid"), "ring"), 1),)
    inner = [degree for degree in grid.ulysses if 1 < degree < cp and cp % degree == 0]
    return tuple((name, degree) for name in grid.cp_algorithm for degree in (inner if name == "hybrid" else (1,)))


def schemes(job: Job, grid: Grid, shape: Shape) -> Iterator[Scheme]:
    """What a shape can be divided over, and what it may keep."""
    for pp in grid.pp:
        ranks, rest = divmod(job.cluster.world_size, pp)
        dp, left = divmod(ranks, shape.tp * shape.cp)
        if rest or left or ranks % (shape.ep * shape.etp) or job.batch.gbs % (shape.mbs * dp):
            continue
        sharded = grid.distributed_optimizer[:1] if dp * shape.cp == 1 else grid.distributed_optimizer
        axes = (grid.recompute, grid.swap_attention, sharded, grid.swap_optimizer, grid.masters)
        yield from (Scheme(pp, *values) for values in product(*axes))


def first_layers(recompute: Recompute) -> int:
    """How many layers of each stage are recomputed, its first ones; 0 where it is not told so."""
    return recompute.num_layers if isinstance(recompute, FullRecompute) and recompute.method == "block" else 0


def pipelines(job: Job, grid: Grid, pp: int, *, first: int) -> Iterator[tuple[Pipeline, tuple[int, ...]]]:
    """The parts and orders in which the layers may run on so many ranks, each with the layers of every stage.

    Where no stage has more layers than its ``first`` ones, which are recomputed, whole layers are recomputed anyway.
    """
    for vpp, schedule in product(grid.vpp, grid.schedule):
        if (vpp > 1) != (schedule in INTERLEAVED) or (pp == 1 and schedule != "1f1b"):
            continue
        num_stages = pp * attrs.evolve(job.layout, vpp=vpp, schedule=schedule).chunks
        for stages in stage_lists(job.model.num_layers, num_stages) if grid.stages is None else grid.stages:
            counts = stages or (job.model.num_layers // num_stages,) * num_stages
            if len(counts) == num_stages and sum(counts) == job.model.num_layers and first < max(counts):
                yield Pipeline(vpp, schedule, stages), counts


@cache
def stage_lists(num_layers: int, num_stages: int) -> tuple[tuple[int, ...] | None, ...]:
    """Layers of each stage: as even as can be, with fewer on the first and on the last.

    The first holds up to one layer fewer or one more than its even share, the last up to four fewer; the others differ
    by one at most, the later ones holding more, since they keep fewer microbatches. None stands for an even division.

    Example:
        >>> stage_lists(8, 4)[:4]
        (None, (3, 2, 2, 1), (3, 2, 3, 0), (2, 2, 3, 1))
    """
    lists: dict[tuple[int, ...] | None, None] = {}
    for first, last in product(FEWER_FIRST, FEWER_LAST):
        counts = list(even_counts(num_layers + first + last, num_stages))
        counts[0] -= first
        counts[-1] -= last
        if min(counts) >= 0 and counts[-1] >= 0:
            lists[None if len(set(counts)) == 1 else tuple(counts)] = None
    return tuple(lists)
