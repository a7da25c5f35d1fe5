"""The device mesh: global rank <-> coordinates, and the ranks of every group, by arithmetic alone.

A layout numbers its ranks twice. Attention and dense layers see the axes tp, cp, dp, pp; expert layers see etp, ep,
edp, pp over the same ranks, since ``etp*ep*edp == tp*cp*dp``. The order string says which axis varies fastest; in it
``tp`` and ``dp`` stand for the axis of either numbering. Attention over a sequence may part cp once more, in groups of
``ulysses`` neighbours that exchange heads, and ``ring`` across those groups.

Source:
    NVIDIA/Megatron-LM core_v0.16.1, megatron/core/parallel_state.py, ``RankGenerator``, ``initialize_model_parallel``.
"""

import functools
from collections.abc import Iterable, Iterator
from types import MappingProxyType

from ridgeline.core.errors import Problem, SpecError, divisors, nearest, one_of
from ridgeline.core.frozen import frozen

DENSE_AXES = ("tp", "cp", "dp", "pp")
EXPERT_AXES = ("etp", "ep", "edp", "pp")
CONTEXT_AXES = ("tp", "ulysses", "ring", "dp", "pp")
ORDER_AXES = ("tp", "cp", "ep", "dp", "pp")

PROCESS_GROUPS = MappingProxyType(
    {
        "tp": "tp",
        "cp": "cp",
        "dp": "dp",
        "pp": "pp",
        "mp": "tp-pp",
        "tp_cp": "tp-cp",
        "dp_cp": "dp-cp",
        "tp_dp_cp": "tp-dp-cp",
        "ep": "ep",
        "expt_tp": "etp",
        "expt_dp": "edp",
        "tp_ep": "etp-ep",
        "tp_ep_pp": "etp-ep-pp",
    }
)
"""Field of Megatron-core's ``ProcessGroupCollection`` -> the axes its group spans."""


@frozen(kw_only=True)
class Mesh:
    """Degrees of all axes, each >= 1, and the order in which ranks are numbered.

    Attributes:
        ulysses: Ranks of cp, side by side, that exchange heads; cp/ulysses such groups are the axis ``ring``.
        order: Axes from the fastest to the slowest varying; an axis of degree 1 may be left out.
    """

    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    dp: int = 1
    pp: int = 1
    ulysses: int = 1
    order: str = "-".join(ORDER_AXES)

    def __attrs_post_init__(self) -> None:
        if problems := tuple(_problems(self)):
            raise SpecError(problems)

    @property
    def edp(self) -> int:
        """Replicas of each expert: ``tp*cp*dp / (etp*ep)``."""
        return self.tp * self.cp * self.dp // (self.etp * self.ep)

    @property
    def ring(self) -> int:
        """Groups of ``ulysses`` ranks in cp."""
        return self.cp // self.ulysses

    @property
    def world_size(self) -> int:
        """Ranks in all: ``tp*cp*dp*pp``."""
        return self.tp * self.cp * self.dp * self.pp


@frozen(kw_only=True)
class RankCoords:
    """Where a rank sits in attention and dense layers."""

    tp_rank: int
    cp_rank: int
    dp_rank: int
    pp_rank: int


@frozen(kw_only=True)
class ExpertCoords:
    """Where a rank sits in expert layers."""

    etp_rank: int
    ep_rank: int
    edp_rank: int
    pp_rank: int


def rank_coords(rank: int, mesh: Mesh) -> RankCoords:
    """Locate a global rank on the mesh.

    Args:
        rank: Global rank, 0 <= rank < mesh.world_size.
        mesh: The mesh that numbers it.

    Returns:
        Coordinates such that, in the default order, ``rank == tp_rank + mesh.tp * (cp_rank + mesh.cp * (dp_rank +
        mesh.dp * pp_rank))``.

    Raises:
        SpecError: ``rank`` lies outside the mesh.

    Example:
        >>> rank_coords(5, Mesh(tp=2, dp=2, pp=2))
        RankCoords(tp_rank=1, cp_rank=0, dp_rank=0, pp_rank=1)
    """
    _check_rank(rank, mesh)
    return RankCoords(**{f"{a}_rank": rank // stride % degree for a, degree, stride in _strides(mesh, DENSE_AXES)})


def expert_coords(rank: int, mesh: Mesh) -> ExpertCoords:
    """Locate a global rank among the experts.

    Raises:
        SpecError: ``rank`` lies outside the mesh.

    Example:
        >>> expert_coords(5, Mesh(tp=2, dp=2, pp=2, ep=4))
        ExpertCoords(etp_rank=0, ep_rank=1, edp_rank=0, pp_rank=1)
    """
    _check_rank(rank, mesh)
    return ExpertCoords(**{f"{a}_rank": rank // stride % degree for a, degree, stride in _strides(mesh, EXPERT_AXES)})


def rank_of(coords: RankCoords | ExpertCoords, mesh: Mesh) -> int:
    """The global rank at a place on the mesh, the inverse of ``rank_coords`` and ``expert_coords``.

    Raises:
        SpecError: A coordinate lies outside its axis.

    Example:
        >>> rank_of(RankCoords(tp_rank=1, cp_rank=0, dp_rank=0, pp_rank=1), Mesh(tp=2, dp=2, pp=2))
        5
    """
    axes = _strides(mesh, DENSE_AXES if isinstance(coords, RankCoords) else EXPERT_AXES)
    places = [(f"{axis}_rank", getattr(coords, f"{axis}_rank"), degree, stride) for axis, degree, stride in axes]
    outside = [(path, value, degree) for path, value, degree, _ in places if not 0 <= value < degree]
    if outside:
        raise SpecError(Problem(path, value, f"must lie in 0 .. {degree - 1}") for path, value, degree in outside)
    return sum(value * stride for _, value, _, stride in places)


def group_of(rank: int, mesh: Mesh, axes: str) -> tuple[int, ...]:
    """The ranks that differ from ``rank`` along some axes only, itself included, ascending in the mesh's order.

    Args:
        rank: Global rank, 0 <= rank < mesh.world_size.
        mesh: The mesh that numbers it.
        axes: Axes joined by ``-``, all of dense layers (tp, cp, dp, pp; or ulysses and ring in the place of cp) or all
            of expert layers (etp, ep, edp, pp).

    Raises:
        SpecError: ``rank`` lies outside the mesh, or ``axes`` is no such combination.

    Example:
        >>> group_of(5, Mesh(tp=2, dp=2, pp=2), "dp-pp")
        (1, 3, 5, 7)
        >>> group_of(2, Mesh(tp=2, cp=4, ulysses=2), "ulysses"), group_of(2, Mesh(tp=2, cp=4, ulysses=2), "ring")
        ((0, 2), (2, 6))
    """
    _check_rank(rank, mesh)
    inside, _ = _split_axes(mesh, axes)
    first = rank - sum(rank // stride % degree * stride for _, degree, stride in inside)
    return tuple(first + offset for offset in _offsets(inside))


def groups(mesh: Mesh, axes: str) -> tuple[tuple[int, ...], ...]:
    """Every group along some axes, in the order in which Megatron-core forms them.

    Raises:
        SpecError: ``axes`` is no combination of axes, see ``group_of``.

    Example:
        >>> groups(Mesh(tp=2, dp=2), "dp")
        ((0, 2), (1, 3))
    """
    inside, outside = _split_axes(mesh, axes)
    offsets = _offsets(inside)
    return tuple(tuple(first + offset for offset in offsets) for first in _offsets(outside))


def embedding_ranks(pp_group: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks of one pipeline that hold the word embedding or its tied head: the first and the last.

    Example:
        >>> embedding_ranks(group_of(1, Mesh(tp=2, pp=4), "pp"))
        (1, 7)
    """
    return pp_group if len(pp_group) == 1 else (pp_group[0], pp_group[-1])


def position_embedding_ranks(pp_group: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks of one pipeline that hold learned position embeddings: the first."""
    return pp_group[:1]


def _problems(mesh: Mesh) -> Iterator[Problem]:
    """Every reason why Megatron-core would refuse these degrees in this order."""
    low = [axis for axis in (*ORDER_AXES, "etp") if getattr(mesh, axis) < 1]
    for axis in low:
        yield Problem(axis, getattr(mesh, axis), "must be >= 1")
    named = mesh.order.split("-")
    for axis in dict.fromkeys(named):
        if axis not in ORDER_AXES:
            yield Problem("order", mesh.order, f"axis {axis!r} is unknown", nearest(axis, ORDER_AXES))
        elif named.count(axis) > 1:
            yield Problem("order", mesh.order, f"axis {axis!r} appears twice", "name it once")
    ranks = mesh.tp * mesh.cp * mesh.dp
    if not low and ranks % (mesh.etp * mesh.ep):
        yield Problem("etp*ep", mesh.etp * mesh.ep, f"must divide tp*cp*dp={ranks}", one_of(divisors(ranks)))
    elif not low and set(named) <= set(ORDER_AXES) and len(set(named)) == len(named):
        yield from _order_problems(mesh, named)


def _order_problems(mesh: Mesh, named: list[str]) -> Iterator[Problem]:
    """Reasons why an order of known axes does not suit the degrees."""
    degrees = {axis: getattr(mesh, axis) for axis in ORDER_AXES}
    degrees |= {"tp": max(mesh.tp, mesh.etp), "dp": max(mesh.dp, mesh.edp)}
    missing = [axis for axis in ORDER_AXES if axis not in named and degrees[axis] > 1]
    if missing:
        left_out = ", ".join(f"{axis}={degrees[axis]}" for axis in missing)
        rule = f"must name every axis of a degree > 1; {left_out} is left out"
        yield Problem("order", mesh.order, rule, f"add {'-'.join(missing)}")
    elif mesh.pp > 1 and named[-1] != "pp":
        strides = {
            stride for axes in (DENSE_AXES, EXPERT_AXES) for axis, _, stride in _strides(mesh, axes) if axis == "pp"
        }
        if len(strides) > 1 or mesh.dp != mesh.edp:
            rule = "numbers the pipelines of dense and of expert layers differently, for these degrees"
            yield Problem("order", mesh.order, rule, f"end it in pp, as {'-'.join(ORDER_AXES)!r}")


def _check_rank(rank: int, mesh: Mesh) -> None:
    if not 0 <= rank < mesh.world_size:
        raise SpecError(Problem("rank", rank, f"must lie in 0 .. world_size-1={mesh.world_size - 1}"))


@functools.cache
def _strides(mesh: Mesh, axes: tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
    """``(axis, degree, stride)`` of one numbering, from the fastest to the slowest varying."""
    if axes == CONTEXT_AXES:
        return tuple(_parted(mesh))
    own_name = {"tp": axes[0], "dp": axes[2]}
    named = [own_name.get(axis, axis) for axis in (*mesh.order.split("-"), *ORDER_AXES)]
    stride, out = 1, []
    for axis in dict.fromkeys(axis for axis in named if axis in axes):
        degree = getattr(mesh, axis)
        out.append((axis, degree, stride))
        stride *= degree
    return tuple(out)


def _parted(mesh: Mesh) -> Iterator[tuple[str, int, int]]:
    """The numbering of dense layers with cp in two."""
    for axis, degree, stride in _strides(mesh, DENSE_AXES):
        if axis == "cp":
            yield "ulysses", mesh.ulysses, stride
            yield "ring", mesh.ring, stride * mesh.ulysses
        else:
            yield axis, degree, stride


def _split_axes(mesh: Mesh, axes: str) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """The strides of the axes named, and those of the others of the same numbering."""
    names = axes.split("-")
    for numbering in (DENSE_AXES, EXPERT_AXES, CONTEXT_AXES):
        if set(names) <= set(numbering) and len(set(names)) == len(names):
            strides = _strides(mesh, numbering)
            return [s for s in strides if s[0] in names], [s for s in strides if s[0] not in names]
    rule = f"must join different axes, all of {'-'.join(DENSE_AXES)} or all of {'-'.join(EXPERT_AXES)}"
    raise SpecError(Problem("axes", axes, rule, "as 'dp-cp' or 'etp-ep-pp'"))


def _offsets(strides: Iterable[tuple[str, int, int]]) -> list[int]:
    offsets = [0]
    for _, degree, stride in strides:
        offsets = [offset + step for step in range(0, degree * stride, stride) for offset in offsets]
    return offsets
