"""Copies between our tensors and published ones, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.checkpoint.boxes import slices
from ridgeline.checkpoint.published import names_fault, placed, plan_files, runs_of
from ridgeline.models.hf_source import (
    Direct,
    GateUp,
    GroupedQkv,
    RowSource,
    Stacked,
    StackedRows,
    Transposed,
    published_shapes,
)


@st.composite
def sources(draw: st.DrawFn) -> tuple[RowSource, tuple[int, ...], dict[str, np.ndarray], np.ndarray]:
    """A source, the shape of ours, published tensors of distinct elements, and ours made of them in numpy's way."""
    width = draw(st.sampled_from([(), (3,)]))

    def new(rows: int, start: int) -> np.ndarray:
        shape = (rows, *width)
        return np.arange(start, start + int(np.prod(shape))).reshape(shape)

    kind = draw(st.sampled_from(["direct", "gate_up", "qkv"]))
    if kind == "direct":
        w = new(draw(st.integers(1, 6)), 0)
        return Direct("w"), w.shape, {"w": w}, w
    if kind == "gate_up":
        rows = draw(st.integers(1, 5))
        gate, up = new(rows, 0), new(rows, 100)
        return GateUp("gate", "up"), (2 * rows, *width), {"gate": gate, "up": up}, np.concatenate([gate, up])
    groups, queries, head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    q, k, v = new(groups * queries * head, 0), new(groups * head, 100), new(groups * head, 200)
    grouped = [q.reshape(groups, -1, *width), k.reshape(groups, -1, *width), v.reshape(groups, -1, *width)]
    ours = np.concatenate(grouped, axis=1).reshape(-1, *width)
    return GroupedQkv("q", "k", "v", groups, queries), ours.shape, {"q": q, "k": k, "v": v}, ours


@settings(deadline=None)
@given(sources())
def test_runs_make_ours(case: tuple[RowSource, tuple[int, ...], dict[str, np.ndarray], np.ndarray]) -> None:
    """Each run of published rows is a box of ours, and together they are all of it, in order."""
    source, shape, published, ours = case
    row = 0
    for run, box in runs_of(source, shape):
        assert box.offset[0] == row
        assert np.array_equal(published[run.tensor][run.start : run.start + run.count], ours[slices(box)])
        row += run.count
    assert row == shape[0]


@settings(deadline=None)
@given(sources())
def test_runs_reach_every_published_row_once(
    case: tuple[RowSource, tuple[int, ...], dict[str, np.ndarray], np.ndarray],
) -> None:
    """No published element is left out or read twice."""
    source, shape, published, _ = case
    seen = {name: np.zeros(len(tensor), int) for name, tensor in published.items()}
    for run, _ in runs_of(source, shape):
        seen[run.tensor][run.start : run.start + run.count] += 1
    assert all((count == 1).all() for count in seen.values())


@settings(deadline=None)
@given(sources())
def test_columns_make_ours(case: tuple[RowSource, tuple[int, ...], dict[str, np.ndarray], np.ndarray]) -> None:
    """Of matrices published transposed, each box of ours is where its strides say, and every element is reached."""
    source, shape, published, ours = case
    shape, ours = (shape, ours) if len(shape) == 2 else ((*shape, 1), ours[:, None])
    made = np.full(shape, -1)
    for name, box, start, strides in placed(Transposed(source), shape):
        flat = np.ascontiguousarray(published[name].reshape(len(published[name]), -1).T).reshape(-1)
        rows, columns = np.ix_(*map(np.arange, box.shape))
        made[slices(box)] = flat[start + rows * strides[0] + columns * strides[1]]
    assert np.array_equal(made, ours)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.sampled_from([1, 2]), st.integers(0, 2))
def test_stacked_experts_are_numpys(experts: int, half: int, width: int, turns: int, expert: int) -> None:
    """An expert's matrix is its slice, turned, gate and up pulled apart; a vector's is not turned."""
    expert %= experts
    shape = (half * turns, width) if width else (half * turns,)
    published = np.arange(experts * int(np.prod(shape))).reshape(experts, *reversed(shape))
    ours = np.concatenate([published[expert].T[turn::turns] for turn in range(turns)])
    made = np.full(shape, -1)
    for name, box, start, strides in placed(Stacked("w", expert, experts, turns), shape):
        assert name == "w"
        indices = start + sum(np.ix_(*(np.arange(n) for n in box.shape))[d] * s for d, s in enumerate(strides))
        made[slices(box)] = published.reshape(-1)[indices]
    assert np.array_equal(made, ours)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 2]), st.integers(0, 2))
def test_experts_of_stacked_rows_are_numpys(experts: int, rows: int, width: int, count: int, expert: int) -> None:
    """An expert's matrix is its slice of each tensor, one below the other."""
    expert %= experts
    names = ("gate", "up")[:count]
    size = experts * rows * width
    published = {name: np.arange(size).reshape(experts, rows, width) + at * size for at, name in enumerate(names)}
    source, shape = StackedRows(names, expert, experts), (count * rows, width)
    assert published_shapes(source, shape) == {name: tensor.shape for name, tensor in published.items()}
    made = np.full(shape, -1)
    for name, box, start, strides in placed(source, shape):
        lines, columns = np.ix_(*map(np.arange, box.shape))
        made[slices(box)] = published[name].reshape(-1)[start + lines * strides[0] + columns * strides[1]]
    assert np.array_equal(made, np.concatenate([published[name][expert] for name in names]))


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 40))
def test_files_hold_all_in_order(sizes: list[int], limit: int) -> None:
    """Every tensor is in one file, in order, and no file that could be split is above the limit."""
    files = plan_files(sizes, max_bytes=limit)
    assert [index for file in files for index in file.tensors] == list(range(len(sizes)))
    assert all(len(f.tensors) == 1 or sum(sizes[i] for i in f.tensors) <= limit for f in files)
    assert len({file.name for file in files}) == len(files)


def test_one_error_names_all() -> None:
    """Missing, misshapen and unknown tensors come together; known extras are no fault."""
    fault = names_fault([("b", (2,)), ("c", (1,)), ("d", (1,))], [("a", (1,)), ("b", (3,))], ["d"])
    assert fault == (
        "  a: missing, expected (1,)",
        "  b: has shape (2,), expected (3,)",
        "  c: is no tensor of this model",
    )


@pytest.mark.parametrize("found", [[("a", (1,))], [("a", (1,)), ("x", (9,))]])
def test_all_fits(found: list[tuple[str, tuple[int, ...]]]) -> None:
    """Nothing is said of tensors that fit."""
    assert names_fault(found, [("a", (1,))], ["x"]) == ()
