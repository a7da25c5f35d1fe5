"""How one of our tensors is made of published ones: which tensors, and in what order their rows lie.

A fused tensor is a rearrangement of whole rows (dim 0), so a source is fully told by ``row_runs``: copying those runs
in order makes our tensor, and copying them back takes it apart. Only rows that are published as columns, and those of
stacked experts, do not lie together.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import TypeAlias

from ridgeline.core.frozen import frozen
from ridgeline.core.model import Attention, Block, GatedDeltaNet, Moe
from ridgeline.models.hf_template import Template

Shape: TypeAlias = tuple[int, ...]


@frozen
class Direct:
    """The published tensor as it is."""

    name: str


@frozen
class GateUp:
    """All rows of ``gate``, then all rows of ``up``."""

    gate: str
    up: str


@frozen
class GroupedQkv:
    """For each of ``groups`` key-value heads: its ``queries`` query heads, its key head, its value head."""

    q: str
    k: str
    v: str
    groups: int
    queries: int


@frozen
class RowRun:
    """``count`` rows of a published tensor, from row ``start``."""

    tensor: str
    start: int
    count: int


@frozen
class Rows:
    """Runs of rows, one after the other."""

    runs: tuple[RowRun, ...]


@frozen
class Stacked:
    """One of ``experts`` in a tensor that stacks them: a vector as it is, a matrix transposed.

    Of ``turns=2`` its elements are gate and up in turn, which ours holds one after the other.
    """

    name: str
    expert: int
    experts: int
    turns: int


@frozen
class StackedRows:
    """One of ``experts`` in tensors that stack them: its rows of the first, then of the next."""

    names: tuple[str, ...]
    expert: int
    experts: int


RowSource: TypeAlias = Direct | GateUp | GroupedQkv | Rows
"""Whole rows, rearranged."""


@frozen
class Transposed:
    """What ``rows`` says, of matrices published as (inputs, outputs): our rows are their columns."""

    rows: RowSource


Source: TypeAlias = RowSource | Transposed | Stacked | StackedRows


def row_runs(source: RowSource, rows: int) -> tuple[RowRun, ...]:
    """The runs of published rows that make a tensor of ``rows`` rows, in its order.

    Example:
        >>> [(run.tensor, run.start, run.count) for run in row_runs(GroupedQkv("q", "k", "v", groups=2, queries=2), 16)]
        [('q', 0, 4), ('k', 0, 2), ('v', 0, 2), ('q', 4, 4), ('k', 2, 2), ('v', 2, 2)]
    """
    if isinstance(source, Direct):
        return (RowRun(source.name, 0, rows),)
    if isinstance(source, Rows):
        return source.runs
    if isinstance(source, GateUp):
        return RowRun(source.gate, 0, rows // 2), RowRun(source.up, 0, rows // 2)
    head = rows // (source.groups * (source.queries + 2))
    queries = head * source.queries
    return tuple(
        run
        for group in range(source.groups)
        for run in (
            RowRun(source.q, group * queries, queries),
            RowRun(source.k, group * head, head),
            RowRun(source.v, group * head, head),
        )
    )


def published_shapes(source: Source, shape: Shape) -> dict[str, Shape]:
    """The tensors a source reads and their shapes, for our tensor of ``shape``."""
    if isinstance(source, Stacked):
        return {source.name: (source.experts, *reversed(shape))}
    if isinstance(source, StackedRows):
        return {name: (source.experts, shape[0] // len(source.names), *shape[1:]) for name in source.names}
    if isinstance(source, Transposed):
        return {name: form[::-1] for name, form in published_shapes(source.rows, shape).items()}
    rows: dict[str, int] = {}
    for run in row_runs(source, shape[0]):
        rows[run.tensor] = rows.get(run.tensor, 0) + run.count
    return {name: (count, *shape[1:]) for name, count in rows.items()}


def bind(template: Template, *, layer: int | None, expert: int | None, block: Block | None) -> Source:
    """The source of one tensor: its layer and expert named, its block's head counts filled in."""
    pair, half = (None, None) if layer is None else divmod(layer, 2)
    names = tuple(name.format(layer=layer, pair=pair, half=half, expert=expert) for name in template.names)
    if template.transform in (*STACKED, "stacked_rows"):
        assert block is not None
        assert expert is not None
        assert isinstance(block.feed_forward, Moe)
        experts = block.feed_forward.experts
        if template.transform == "stacked_rows":
            return StackedRows(names, expert, experts)
        (name,) = names
        return Stacked(name, expert, experts, turns=STACKED[template.transform])
    source = _BINDERS[template.transform](names, block)
    return Transposed(source) if template.transposed else source


def _bind_qkv(names: tuple[str, ...], block: Block | None) -> GroupedQkv:
    assert block is not None
    assert isinstance(block.mixer, Attention)
    return GroupedQkv(*names, groups=block.mixer.kv_heads, queries=block.mixer.heads // block.mixer.kv_heads)


def _bind_packed_qkv(names: tuple[str, ...], block: Block | None) -> Rows:
    assert block is not None
    assert isinstance(block.mixer, Attention)
    (name,), head, groups = names, block.mixer.head_dim, block.mixer.kv_heads
    queries, keys = block.mixer.heads * head // groups, block.mixer.heads * head
    values = keys + groups * head
    parts = ((0, queries), (keys, head), (values, head))
    return Rows(tuple(RowRun(name, begin + group * size, size) for group in range(groups) for begin, size in parts))


def _bind_gated_qkv(names: tuple[str, ...], block: Block | None) -> Rows:
    assert block is not None
    assert isinstance(block.mixer, Attention)
    (q, k, v), head, groups = names, block.mixer.head_dim, block.mixer.kv_heads
    queries = block.mixer.heads // groups
    runs = []
    for group in range(groups):
        heads = range(group * queries, (group + 1) * queries)
        runs += [RowRun(q, 2 * head * index, head) for index in heads]
        runs += [RowRun(q, 2 * head * index + head, head) for index in heads]
        runs += [RowRun(k, group * head, head), RowRun(v, group * head, head)]
    return Rows(tuple(runs))


def _bind_delta_inputs(names: tuple[str, ...], block: Block | None) -> Rows:
    assert block is not None
    assert isinstance(block.mixer, GatedDeltaNet)
    mixer, runs = block.mixer, []
    values = mixer.value_heads // mixer.key_heads
    keys, wide = mixer.key_head_dim, values * mixer.value_head_dim
    for tensor, parts in zip(names, ((keys, keys, wide, wide), (values, values)), strict=True):
        for begin, count in zip(accumulate(parts, initial=0), parts, strict=False):
            runs += [RowRun(tensor, head * sum(parts) + begin, count) for head in range(mixer.key_heads)]
    return Rows(tuple(runs))


STACKED: Mapping[str, int] = MappingProxyType({"stacked": 1, "stacked_turns": 2})
"""Parts of each row or vector that stand in turn, by transform."""

_BINDERS: Mapping[str, Callable[[tuple[str, ...], Block | None], RowSource]] = MappingProxyType(
    {
        "direct": lambda names, _: Direct(*names),
        "gate_up": lambda names, _: GateUp(*names),
        "grouped_qkv": _bind_qkv,
        "packed_qkv": _bind_packed_qkv,
        "gated_qkv": _bind_gated_qkv,
        "delta_inputs": _bind_delta_inputs,
    }
)
