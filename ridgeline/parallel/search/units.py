"""What the embedding, each layer and the head take on a rank, whatever their stage: asked of the planner itself.

Each kind of layer is given to the planner as a stage of its own; a stage of several layers then takes their sum.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from operator import sub
from typing import NamedTuple

import attrs

from ridgeline.core.job import Job
from ridgeline.parallel.collectives import gradient_collectives
from ridgeline.parallel.held import Held, plan_held
from ridgeline.parallel.links import collective_us, spread_of
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.of_job import mesh_of
from ridgeline.parallel.ops import sizes_of
from ridgeline.parallel.search.grid import Pipeline, Point, Scheme, Shape, job_at
from ridgeline.parallel.shards import plan_shards
from ridgeline.parallel.stages import StageMap
from ridgeline.parallel.states import states_of
from ridgeline.parallel.time import stage_parts, update_us
from ridgeline.parallel.work import kept_bytes, stage_work


class Column(NamedTuple):
    """One quantity of a whole model.

    Attributes:
        sums: Of layers; entry i is the sum of the first i.
        before, after: Of the embedding, and of all that follows the layers.
    """

    sums: Sequence[float]
    before: float
    after: float

    @property
    def total(self) -> float:
        """Of all of it."""
        return self.before + self.sums[-1] + self.after

    def by_stage(self, cuts: Sequence[int], first: int = 0, of_first: "Column | None" = None) -> list[float]:
        """Of each stage.

        Args:
            cuts: Where stages begin and end: 0, then how many layers lie before each end.
            first: How many layers of each stage, its first ones, count as in ``of_first``.
        """
        at = list(map(self.sums.__getitem__, cuts))
        stages = list(map(sub, at[1:], at))
        if first and of_first is not None and of_first is not self:
            extra = list(map(sub, of_first.sums, self.sums))
            for stage, (start, stop) in enumerate(pairwise(cuts)):
                stages[stage] += extra[min(stop, start + first)] - extra[start]
        stages[0] += self.before
        stages[-1] += self.after
        return stages


class Running(NamedTuple):
    """What one microbatch takes on a rank."""

    forward_us: Column
    backward_us: Column
    kept_bytes: Column


class Lasting(NamedTuple):
    """What a rank holds and does whatever the microbatches.

    Attributes:
        state_bytes: Weights, gradients and the optimizer's states.
        overhead_us: At the least after the last backward, on some rank: reductions, gathers and the update.
    """

    state_bytes: Column
    overhead_us: float


class Units(NamedTuple):
    """The two, each worked out once for what it depends on."""

    running: Callable[[Shape, Scheme], Running]
    lasting: Callable[[Shape, Scheme], Lasting]


def units_of(job: Job) -> Units:
    """What the parts of a job's model take, at any point of a grid."""
    kinds = list(dict.fromkeys(run.block for run in job.model.blocks))
    layers = job.model.layers()
    of_kinds = StageMap(
        pp=len(kinds) + 2,
        vpp=1,
        layers=((), *((layers.index(kind),) for kind in kinds), ()),
        noop_layers=((),) * (len(kinds) + 2),
        mtp=job.model.mtp,
    )
    order = [1 + kinds.index(block) for block in layers]
    pp_is_slowest = job.layout.order.endswith("-pp")

    def column(values: Sequence[float]) -> Column:
        return Column(list(accumulate((values[stage] for stage in order), initial=0)), values[0], values[-1])

    @cache
    def held_at(shape: Shape, pp: int) -> tuple[Held, ...]:
        there = job_at(job, Point(shape, Scheme(pp), Pipeline(1, None, None)))
        shards = plan_shards(there.model, there.layout, there.adapter)
        return plan_held(there, mesh=mesh_of(there), stages=of_kinds, shards=shards)

    @cache
    def running(shape: Shape, scheme: Scheme) -> Running:
        there = job_at(job, Point(shape, scheme, Pipeline(1, None, None)))
        work, sizes, held = stage_work(there, of_kinds), sizes_of(there), held_at(shape._replace(mbs=1), scheme.pp)
        forwards, backwards = stage_parts(there, mesh=mesh_of(there), held=held, work=work)
        # What pairs of a forward and a backward may hide is taken as hidden.
        hides = job.comm.moe_fb_overlap
        forward = [sum(parts) - parts.ep * hides for parts in forwards]
        backward = [sum(parts) - parts.ep * hides for parts in backwards]
        if job.model.tied_embeddings:  # whether the head's stage holds the embedding once more depends on the stages
            backward[-1] -= backwards[-1].accumulate
        # Recomputed ahead of its backward, a microbatch may keep nothing from its forward to there.
        keeps = job.memory.recompute_when == "backward"
        kept = [sum(kept_bytes(run, sizes) for run in one.runs) * keeps for one in work]
        return Running(column(forward), column(backward), column(kept))

    @cache
    def lasting(shape: Shape, scheme: Scheme) -> Lasting:
        there = job_at(job, Point(shape, scheme, Pipeline(1, None, None)))
        mesh = mesh_of(there)
        held = list(map(_unpadded, held_at(shape, scheme.pp)))
        states = [states_of(there, mesh=mesh, held=[one]) for one in held]
        size = column([one.params + one.grads + one.masters + one.moments for one in states])
        dense, expert = (column([getattr(one, kind) for one in held]).total for kind in ("dense", "expert"))
        return Lasting(size, _overhead_us(there, mesh, dense / scheme.pp, expert / scheme.pp))

    # The groups of a layer's collectives lie alike for every pp, where pp varies slowest; states do not matter to what
    # runs. Weights last whatever is recomputed and however large a microbatch is.
    def running_of(shape: Shape, scheme: Scheme) -> Running:
        return running(shape, Scheme(1 if pp_is_slowest else scheme.pp, scheme.recompute, scheme.swap_attention))

    def lasting_of(shape: Shape, scheme: Scheme) -> Lasting:
        return lasting(shape._replace(mbs=1), scheme._replace(recompute=None, swap_attention=False))

    return Units(running_of, lasting_of)


def _unpadded(held: Held) -> Held:
    """The elements that lie on the stage whatever the others are, without an embedding that two stages may share."""
    dense = held.dense - held.tied
    return Held(
        dense=dense,
        expert=held.expert,
        replicated=0,
        tied=0,
        dense_buffer=dense,
        tied_buffer=0,
        expert_buffer=held.expert,
        largest=0,
        frozen_bytes=held.frozen_bytes,
    )


def _overhead_us(job: Job, mesh: Mesh, dense: float, expert: float) -> float:
    """What a rank with the mean of all ranks' weights does after its last backward; some rank does as much.

    All of it grows in proportion with the weights, but for latencies, which are left out, and roundings to whole bytes.
    """
    dense, expert = (max(0, int(elements) - 64) for elements in (dense, expert))
    mean = Held(dense, expert, 0, 0, dense, 0, expert, 0, 0)
    links = {name: attrs.evolve(getattr(job.cluster, name), latency_us=0.0) for name in ("intra", "inter")}
    cluster = attrs.evolve(job.cluster, **links)
    reduced = sum(
        collective_us(key.kind, key.size_bytes, spread_of(key.axes, mesh, cluster), cluster) * times
        for key, times in gradient_collectives(job, mesh, mean, 0)
        if key.phase == "step"
    )
    return reduced + update_us(job, mesh, [mean])
