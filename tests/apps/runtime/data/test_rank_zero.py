"""Once, on rank 0, for all."""

import time
from pathlib import Path

import pytest

from ridgeline.core.errors import DataError
from tests.pool import Pool


def outcome(folder: str, how: str) -> tuple[str, str]:
    from torch import distributed

    from ridgeline.apps.runtime.data.rank_zero import on_rank_zero

    def work() -> str:
        (Path(folder) / f"worked on {distributed.get_rank()}").touch()
        if how == "slow":
            time.sleep(0.5)
        if how == "refuses":
            raise DataError("a.jsonl line 3: is broken")
        if how == "fails":
            raise KeyError("no")
        return "made"

    try:
        return "result", on_rank_zero(work, beat_seconds=0.05)
    except Exception as error:
        return type(error).__name__, str(error)


def sees(folder: str, shared: bool) -> str:
    from torch import distributed

    from ridgeline.apps.runtime.data.rank_zero import check_visible

    here = Path(folder) / ("shared" if shared else str(distributed.get_rank())) / "file"
    if distributed.get_rank() == 0:
        here.parent.mkdir()
        here.touch()
    distributed.barrier()
    try:
        check_visible(here, what="data.cache", patience_seconds=0.1)
    except DataError as error:
        return str(error)
    return "seen"


@pytest.mark.parametrize("how", ["fast", "slow"])
def test_one_rank_works_and_all_have_the_result(ranks: Pool, how: str, tmp_path: Path) -> None:
    """The work is done once, however long it takes."""
    assert ranks.run(outcome, 2, str(tmp_path), how) == [("result", "made")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["worked on 0"]


def test_an_error_of_rank_zero_is_everyones(ranks: Pool, tmp_path: Path) -> None:
    """The same message on every rank; a foreign error comes to the others as text."""
    assert ranks.run(outcome, 2, str(tmp_path), "refuses") == [("DataError", "a.jsonl line 3: is broken")] * 2
    theirs = [("KeyError", "'no'"), ("RuntimeError", "rank 0: KeyError: 'no'")]
    assert ranks.run(outcome, 2, str(tmp_path), "fails") == theirs


def test_a_folder_that_is_not_shared_is_refused_on_every_rank(ranks: Pool, tmp_path: Path) -> None:
    """The ranks that see nothing are named to all."""
    assert ranks.run(sees, 2, str(tmp_path), True) == ["seen"] * 2
    first, second = ranks.run(sees, 2, str(tmp_path), False)
    assert "written by rank 0 but not visible to ranks 1; use a folder on shared storage" in first
    assert "not visible to ranks 1;" in second


def test_a_process_alone_just_works(tmp_path: Path) -> None:
    """Without a process group there is nobody to wait for."""
    from ridgeline.apps.runtime.data.rank_zero import check_visible, on_rank_zero

    assert on_rank_zero(lambda: 7) == 7
    check_visible(tmp_path / "none", what="data.cache")
