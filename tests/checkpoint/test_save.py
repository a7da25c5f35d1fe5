"""A save is whole or not there, whatever happens to it."""

import json
import random
import shutil
from pathlib import Path

import attrs
import pytest

from ridgeline.checkpoint.io.folders import latest, saved_steps
from ridgeline.checkpoint.io.recorded import find_checkpoint, open_record
from ridgeline.core.codec import dumps
from ridgeline.core.errors import CheckpointError
from tests.checkpoint.test_dist import DENSE, MOE, job
from tests.checkpoint.training import (
    checkpoint_of,
    load_error,
    loaded_values,
    resumed,
    save_until_killed,
    save_without_room,
    uninterrupted,
)
from tests.pool import Pool, RankError

TWO = dumps(job(attrs.evolve(DENSE, vocab_size=128), 2, layout__tp=2))
RUN = dumps(job(DENSE, 1))


@pytest.mark.parametrize("instants", [3, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_any_instant(ranks: Pool, tmp_path: Path, instants: int) -> None:
    """SIGKILL of a rank at any moment of a save, plain or in the background, leaves a whole checkpoint that loads."""
    chance = random.Random(instants)
    for number in range(instants):
        newest = max(saved_steps(tmp_path), default=0)
        with pytest.raises(RankError, match="died with exit code -9"):
            ranks.run(save_until_killed, 2, TWO, str(tmp_path), newest + 1, number % 2, chance.random())
        found = latest(tmp_path)
        assert found is not None
        assert ranks.run(loaded_values, 2, TWO, str(found)) == [(s := open_record(found).step, [float(s)])] * 2
        assert len(saved_steps(tmp_path)) <= 4
    ranks.run(uninterrupted, 1, RUN, str(tmp_path), 1, 1)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("async_", [False, True])
def test_no_room(ranks: Pool, tmp_path: Path, async_: bool) -> None:
    """When one rank's disk is full, all are told, nothing half-written stays, and earlier and later saves are whole."""
    told = ranks.run(save_without_room, 2, TWO, str(tmp_path), async_)
    assert told[0] == told[1]
    (sentence,) = told[0]
    assert sentence.startswith(f"rank 1: folder={tmp_path}/step_0000002: no room to write it (File too large")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_0000001", "step_0000003"]
    assert ranks.run(load_error, 2, TWO, checkpoint_of(tmp_path, 3)) == ["", ""]


def test_saved_while_training_goes_on(ranks: Pool, tmp_path: Path) -> None:
    """A save in the background holds the state of its step, not of those trained meanwhile."""
    text = dumps(job(DENSE, 2, precision__params="bf16"))
    never_stopped = ranks.run(uninterrupted_async, 2, text, str(tmp_path))
    assert ranks.run(resumed, 2, text, checkpoint_of(tmp_path, 2), 4) == never_stopped


def uninterrupted_async(text: str, folder: str):
    return uninterrupted(text, folder, 2, 4, async_=True)


def keep_two(text: str, folder: str) -> None:
    for step in (1, 2, 3, 2):
        uninterrupted(text, folder, step, step, keep_last=2)


def test_the_last_ones_stay(ranks: Pool, tmp_path: Path) -> None:
    """As many stay as asked for, a step saved again replaces itself, and the pointer names what was saved last."""
    ranks.run(keep_two, 1, RUN, str(tmp_path))
    assert sorted(saved_steps(tmp_path)) == [2, 3]
    assert find_checkpoint(tmp_path) == tmp_path / "step_0000002"
    run = tmp_path / "run"
    shutil.copytree(tmp_path, run / "checkpoints", ignore=shutil.ignore_patterns("run"))
    assert find_checkpoint(run) == run / "checkpoints" / "step_0000002"
    with pytest.raises(CheckpointError, match="absent: is no folder; name a saved step, or the folder of a run"):
        find_checkpoint(tmp_path / "absent")


def test_what_cannot_be_loaded_is_told(ranks: Pool, tmp_path: Path) -> None:
    """Another model, a damaged file, a missing one and a later format are each refused by name."""
    ranks.run(uninterrupted, 1, RUN, str(tmp_path), 1, 1)
    folder = Path(checkpoint_of(tmp_path, 1))

    def told(text: str = RUN) -> str:
        (sentence,) = ranks.run(load_error, 1, text, str(folder))
        return sentence

    assert told(dumps(job(MOE, 1))).startswith(f"checkpoint={folder}: is of another model; saved -> asked for:\n")
    wider = attrs.evolve(DENSE, vocab_size=140, name="other", init_std=0.5)
    assert told(dumps(job(wider, 1))).splitlines()[1:2] == ["  model.vocab_size: 131 -> 140"]
    assert told() == ""

    file = folder / "__0_0.distcp"
    good = file.read_bytes()
    file.write_bytes(good[:-5])
    way_out = "restore it, or remove this step"
    assert told() == f"file={file}: is damaged: it holds {len(good) - 5} bytes, expected {len(good)}; {way_out}"
    file.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    assert "is damaged: its CRC-32 is" in told()
    file.unlink()
    assert told() == f"file={file}: is missing, expected {len(good)} bytes; {way_out}"
    file.write_bytes(good)

    record = json.loads((folder / "ridgeline.json").read_text())
    (folder / "ridgeline.json").write_text(json.dumps({**record, "format": 99}))
    assert "format=99: is of a later format than 1; use a newer Ridgeline" in told()
    (folder / "ridgeline.json").write_text('{"step": 1')
    assert f"file={folder}/ridgeline.json: is not what Ridgeline writes" in told()
    (folder / "ridgeline.json").unlink()
    assert told() == f"checkpoint={folder}: has no ridgeline.json; name the folder of one saved step"
