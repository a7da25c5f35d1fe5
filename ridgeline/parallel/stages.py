"""The stage map: which layers, and which of embedding, head and MTP, each pipeline stage owns.

Stages count in model order. The embedding opens stage 0; MTP and head close the last stage. A placement says where
they lie; chunks are a rank's stages in model order.

    loop    stage s on rank s % pp: every chunk runs from the first rank to the last
    v       the odd chunks run back: of two chunks a rank, rank 0 owns both ends of the model
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from ridgeline.core.errors import PlanError, Problem, divisors
from ridgeline.core.frozen import frozen
from ridgeline.core.layout import Placement


@frozen(kw_only=True)
class StageMap:
    """The layers of every stage.

    Attributes:
        layers: For each stage its layers, as global indices 0 .. num_layers-1, contiguous and ascending.
        noop_layers: For each stage its identity layers, as positions in the numbering that counts them.
        mtp: Multi-token-prediction layers, all on the last stage.
        placement: Which rank owns which stage.
    """

    pp: int
    vpp: int
    layers: tuple[tuple[int, ...], ...]
    noop_layers: tuple[tuple[int, ...], ...]
    mtp: int = 0
    placement: Placement = "loop"

    @property
    def num_stages(self) -> int:
        """``pp*vpp``."""
        return self.pp * self.vpp

    @property
    def num_layers(self) -> int:
        """Layers of the model, identity layers not counted."""
        return sum(map(len, self.layers))

    @property
    def ends_meet(self) -> bool:
        """Whether one rank owns both the first stage and the last, so that no two ranks share a tied embedding."""
        return self.owner(0) == self.owner(self.num_stages - 1)

    def owner(self, stage: int) -> int:
        """The pipeline rank of a stage."""
        chunk, position = divmod(stage, self.pp)
        return self.pp - 1 - position if self.placement == "v" and chunk % 2 else position

    def owned_by(self, pp_rank: int) -> tuple[int, ...]:
        """The stages of a pipeline rank, a chunk each.

        Example:
            >>> plan_stages(8, pp=4, vpp=2).owned_by(1), plan_stages(8, pp=4, vpp=2, placement="v").owned_by(1)
            ((1, 5), (1, 6))
        """
        mirrored = self.pp - 1 - pp_rank if self.placement == "v" else pp_rank
        return tuple(chunk * self.pp + (mirrored if chunk % 2 else pp_rank) for chunk in range(self.vpp))

    def __str__(self) -> str:
        """A row for each pipeline rank, a column for each chunk.

        Example:
            >>> print(plan_stages(11, pp=2, vpp=2, noop_layers=(11,)))
            pp_rank  chunk 0                chunk 1
            0        embedding, layers 0-2  layers 6-8
            1        layers 3-5             layers 9-10, noop 11, head
        """
        header = ["pp_rank", *(f"chunk {chunk}" for chunk in range(self.vpp))]
        stages = [_stage_text(self, stage) for stage in range(self.num_stages)]
        rows = [header, *([str(pp_rank), *(stages[s] for s in self.owned_by(pp_rank))] for pp_rank in range(self.pp))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def plan_stages(
    num_layers: int,
    *,
    pp: int,
    vpp: int = 1,
    stages: Sequence[int] | None = None,
    noop_layers: Sequence[int] = (),
    mtp: int = 0,
    placement: Placement = "loop",
) -> StageMap:
    """Divide the layers of a model among pipeline stages.

    Args:
        num_layers: Layers of the model, identity layers not counted.
        pp: Pipeline ranks.
        vpp: Chunks per rank.
        stages: Layers of each of the ``pp*vpp`` stages in model order; None splits evenly.
        noop_layers: Identity layers, as positions 0 .. num_layers+len(noop_layers)-1 in the numbering that counts them,
            which is what is then split evenly.
        mtp: Multi-token-prediction layers after the last layer.
        placement: Which rank owns which stage.

    Raises:
        PlanError: No such division; every rule broken is named.
    """
    if problems := tuple(
        stage_problems(num_layers, pp=pp, vpp=vpp, stages=stages, noop_layers=noop_layers, placement=placement)
    ):
        raise PlanError(problems)
    return _divide(num_layers, pp, vpp, stages, noop_layers, mtp, placement)


def even_counts(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Layers of each stage, as even as can be: what does not divide goes to the later stages, which keep fewer
    microbatches.

    Example:
        >>> even_counts(61, 8)
        (7, 7, 7, 8, 8, 8, 8, 8)
    """
    share, more = divmod(num_layers, num_stages)
    return tuple(share + (stage >= num_stages - more) for stage in range(num_stages))


def stage_problems(
    num_layers: int,
    *,
    pp: int,
    vpp: int = 1,
    stages: Sequence[int] | None = None,
    noop_layers: Sequence[int] = (),
    placement: Placement = "loop",
) -> Iterator[Problem]:
    """Every reason why ``plan_stages`` would refuse."""
    if stages is not None:
        problems = list(_uneven_problems(num_layers, pp, vpp, stages, noop_layers))
    else:
        problems = list(_even_problems(num_layers, pp, vpp, noop_layers))
    yield from problems or _idle_rank_problems(_divide(num_layers, pp, vpp, stages, noop_layers, 0, placement), stages)


def _divide(
    num_layers: int,
    pp: int,
    vpp: int,
    stages: Sequence[int] | None,
    noop_layers: Sequence[int],
    mtp: int,
    placement: Placement,
) -> StageMap:
    num_stages = pp * vpp
    size = (num_layers + len(noop_layers)) // num_stages
    noops = [[i for i in sorted(noop_layers) if stage * size <= i < (stage + 1) * size] for stage in range(num_stages)]
    counts = [size - len(noop) for noop in noops] if stages is None else stages
    layers = iter(range(num_layers))
    owned = tuple(tuple(islice(layers, count)) for count in counts)
    return StageMap(pp=pp, vpp=vpp, layers=owned, noop_layers=tuple(map(tuple, noops)), mtp=mtp, placement=placement)


def _uneven_problems(
    num_layers: int, pp: int, vpp: int, stages: Sequence[int], noop_layers: Sequence[int]
) -> Iterator[Problem]:
    if noop_layers:
        rule = "excludes layout.stages, which already says how many layers a stage holds"
        yield Problem("layout.noop_layers", tuple(noop_layers), rule, "keep one of the two")
    if len(stages) != pp * vpp:
        rule = f"must have one count for each of pp={pp} * vpp={vpp} = {pp * vpp} stages, not {len(stages)}"
        yield Problem("layout.stages", tuple(stages), rule)
    if any(count < 0 for count in stages):
        yield Problem("layout.stages", tuple(stages), "counts must be >= 0")
    elif sum(stages) != num_layers:
        yield Problem("layout.stages", tuple(stages), f"must add up to num_layers={num_layers}, not {sum(stages)}")


def _even_problems(num_layers: int, pp: int, vpp: int, noop_layers: Sequence[int]) -> Iterator[Problem]:
    total = num_layers + len(noop_layers)
    if beyond := [position for position in noop_layers if not 0 <= position < total]:
        rule = f"positions must lie in 0 .. {total - 1}, the numbering that counts noop layers; {beyond} do not"
        yield Problem("layout.noop_layers", tuple(noop_layers), rule)
    if len(set(noop_layers)) < len(noop_layers):
        yield Problem("layout.noop_layers", tuple(noop_layers), "names a position twice", "name it once")
    if total % (pp * vpp):
        noops = f"with {len(noop_layers)} noop layers " if noop_layers else ""
        rule = f"{noops}does not split evenly over pp={pp} * vpp={vpp} = {pp * vpp} stages"
        numbers = ", ".join(map(str, divisors(total)))
        way_out = f"use pp*vpp from {{{numbers}}}, set layout.stages, or add noop layers"
        yield Problem("model.num_layers", num_layers, rule, way_out)


def _idle_rank_problems(stage_map: StageMap, stages: Sequence[int] | None) -> Iterator[Problem]:
    """A stage may be without layers, a rank without parameters may not.

    Source:
        Megatron-core 0.16.1 trains a stage without layers exactly, wherever it lies (its ``TransformerBlock`` clones
        the input), but its distributed optimizer cannot save a rank without parameters (``distrib_optimizer.py``,
        ``state_dict``: ``assert len(steps) == 1``). Older versions hang: NVIDIA/Megatron-LM#1852.
    """
    ends = {stage_map.owner(0), stage_map.owner(stage_map.num_stages - 1)}
    for pp_rank in range(stage_map.pp):
        if pp_rank not in ends and not any(stage_map.layers[stage] for stage in stage_map.owned_by(pp_rank)):
            path = "layout.noop_layers" if stages is None else "layout.stages"
            value = sum(stage_map.noop_layers, ()) if stages is None else tuple(stages)
            rule = f"leaves pp_rank={pp_rank} without layers, embedding or head, so without a parameter to save"
            yield Problem(path, value, rule, "give it a layer, or lower layout.pp")


def stage_of_layer(stage_map: StageMap, layer: int) -> int:
    """The stage that owns a layer, given by its global index.

    Example:
        >>> stage_of_layer(plan_stages(8, pp=2, vpp=2), 5)
        2
    """
    return next(stage for stage, layers in enumerate(stage_map.layers) if layer in layers)


def megatron_layout(stage_map: StageMap) -> str:
    """The map in Megatron-core's words, for ``pipeline_model_parallel_layout``.

    ``E`` is the embedding, ``t`` a transformer layer, ``m`` an MTP layer, ``L`` head and loss; ``|`` ends a stage.

    Example:
        >>> megatron_layout(plan_stages(8, pp=2, vpp=2, stages=(1, 3, 4, 0)))
        'Et|t*3|t*4|L'

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/core/transformer/pipeline_parallel_layer_layout.py.
    """
    return layout_text(tuple(map(len, stage_map.layers)), mtp=stage_map.mtp)


def layout_text(num_layers: Sequence[int], *, mtp: int) -> str:
    """The layers of each stage as ``megatron_layout`` spells them, with MTP layers on the last.

    Example:
        >>> layout_text((1, 3, 4, 0), mtp=1)
        'Et|t*3|t*4|mL'
    """
    stages = [_times("t", count) for count in num_layers]
    stages[0] = "E" + stages[0]
    stages[-1] += _times("m", mtp) + "L"
    return "|".join(stages)


def _times(letter: str, count: int) -> str:
    return letter * count if count < 2 else f"{letter}*{count}"


def _stage_text(stage_map: StageMap, stage: int) -> str:
    parts = []
    if stage == 0:
        parts.append("embedding")
    if layers := stage_map.layers[stage]:
        parts.append(f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}")
    if noops := stage_map.noop_layers[stage]:
        parts.append(f"noop {', '.join(map(str, noops))}")
    if stage == stage_map.num_stages - 1:
        parts.extend(["mtp"] if stage_map.mtp == 1 else [f"mtp*{stage_map.mtp}"] if stage_map.mtp else [])
        parts.append("head")
    return ", ".join(parts) or "empty"
