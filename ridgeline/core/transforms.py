"""Transforms: pure functions Job -> Job, to be composed.

A transform changes what its name says and nothing else; whether the result can be planned is the planner's to say.

    job = compose(with_layout(tp=2, pp=2, sp=True), recompute("full"), reduce_layers(4))(job)
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs

from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.layout import Layout
from ridgeline.core.model import Repeat

Transform: TypeAlias = Callable[[Job], Job]


def identity(job: Job) -> Job:
    """The job itself."""
    return job


def compose(*transforms: Transform) -> Transform:
    """All of them, the first one first; of none, the identity."""

    def composed(job: Job) -> Job:
        for transform in transforms:
            job = transform(job)
        return job

    return composed


def with_layout(**fields: object) -> Transform:
    """Change these fields of the layout and keep the others.

    Raises:
        SpecError: A layout has no such field, or not such a value.
    """
    names = [field.name for field in attrs.fields(Layout)]
    unknown = [name for name in fields if name not in names]
    if unknown:
        raise SpecError(
            Problem(f"layout.{name}", fields[name], "unknown field", nearest(name, names)) for name in unknown
        )
    return lambda job: attrs.evolve(job, layout=_evolved(job.layout, fields))


def recompute(
    granularity: Literal["none", "selective", "full"],
    *,
    modules: tuple[Literal["core_attn", "mlp", "moe", "layernorm"], ...] = ("core_attn",),
    method: Literal["uniform", "block"] = "uniform",
    num_layers: int = 1,
) -> Transform:
    """Recompute activations in the backward pass: these ``modules`` of each layer, or whole layers, or none.

    Raises:
        SpecError: No such granularity, module or method.
    """
    choices = {
        "none": lambda: None,
        "selective": lambda: SelectiveRecompute(modules=modules),
        "full": lambda: FullRecompute(method=method, num_layers=num_layers),
    }
    if granularity not in choices:
        raise SpecError(Problem("granularity", granularity, "unknown", nearest(granularity, choices)))
    chosen = choices[granularity]()
    return lambda job: attrs.evolve(job, memory=attrs.evolve(job.memory, recompute=chosen))


def distributed_optimizer(on: bool = True) -> Transform:
    """Shard the optimizer's state over dp, or keep all of it on every rank."""
    return lambda job: attrs.evolve(job, memory=attrs.evolve(job.memory, distributed_optimizer=on))


def noop_layers(*positions: int) -> Transform:
    """Identity layers at these positions, in the numbering that counts them; of none, a model without."""
    return with_layout(noop_layers=tuple(sorted(set(positions))))


def reduce_layers(count: int) -> Transform:
    """Keep the first ``count`` layers; a model that has no more stays as it is.

    Raises:
        SpecError: ``count`` is below 1.
    """
    if count < 1:
        raise SpecError(Problem("count", count, "must be >= 1"))

    def reduce(job: Job) -> Job:
        left, blocks = count, []
        for run in job.model.blocks:
            if left:
                blocks.append(Repeat(block=run.block, count=min(left, run.count)))
                left -= blocks[-1].count
        return attrs.evolve(job, model=attrs.evolve(job.model, blocks=tuple(blocks)))

    return reduce


def resize(*, gbs: int | None = None, mbs: int | None = None, seq_len: int | None = None) -> Transform:
    """Another size of batch or sequence; what is None stays."""
    sizes = {name: size for name, size in (("gbs", gbs), ("mbs", mbs), ("seq_len", seq_len)) if size is not None}
    return lambda job: attrs.evolve(job, batch=attrs.evolve(job.batch, **sizes))


def on_nodes(nodes: int) -> Transform:
    """The same machine with this many nodes."""
    return lambda job: attrs.evolve(job, cluster=attrs.evolve(job.cluster, nodes=nodes))


def _evolved(layout: Layout, fields: dict[str, object]) -> Layout:
    try:
        return attrs.evolve(layout, **fields)
    except SpecError as error:
        raise SpecError(problem.under("layout") for problem in error.problems) from None
