"""Folders get their names whole or not at all, whatever interrupts their writer."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ridgeline.checkpoint.io.folders import (
    begin_folder,
    clean,
    disk_sentence,
    latest,
    publish,
    remove_folder,
    replace_file,
    saved_steps,
    whole_folder,
)
from ridgeline.checkpoint.steps import expired, step_name
from ridgeline.core.errors import CheckpointError


def save(folder: Path, step: int, text: str = "{}") -> Path:
    """A checkpoint as far as folders go."""
    final = folder / step_name(step)
    temporary = begin_folder(final)
    (temporary / "ridgeline.json").write_text(text)
    publish(temporary, final)
    return final


def test_latest_is_what_the_pointer_names(tmp_path: Path) -> None:
    """The pointer decides while it names something complete; then the newest complete step does."""
    assert latest(tmp_path / "absent") is None
    assert latest(tmp_path) is None
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    begin_folder(tmp_path / step_name(3))
    assert latest(tmp_path) == two
    replace_file(tmp_path / "latest", b"step_0000001\n")
    assert latest(tmp_path) == one
    remove_folder(one)
    assert latest(tmp_path) == two


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    """A second save of a step replaces the first, and leaves nothing behind."""
    save(tmp_path, 1, "old")
    assert (save(tmp_path, 1, "new") / "ridgeline.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == [step_name(1)]


def test_leftovers_are_cleaned(tmp_path: Path) -> None:
    """What an interrupted save left is removed, what it was about to replace comes back, nothing else is touched."""
    one = save(tmp_path, 1, "kept")
    one.rename(tmp_path / f".old-{one.name}")
    for name in (f".tmp-{step_name(2)}", f".del-{step_name(3)}", ".tmp-mine", "notes"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == {1: tmp_path / f".old-{one.name}"}

    clean(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-mine", "notes", step_name(1)]
    assert (one / "ridgeline.json").read_text() == "kept"


WRITER = """
import sys
from pathlib import Path
from tests.checkpoint.test_folders import save
from ridgeline.checkpoint.io.folders import clean, remove_folder, replace_file, saved_steps
folder = Path(sys.argv[1])
print("ready", flush=True)
for step in [*range(2, 10_000)]:
    clean(folder)
    final = save(folder, step % 5, "whole")
    replace_file(folder / "latest", final.name.encode())
    for old, path in saved_steps(folder).items():
        if old not in (step % 5, (step - 1) % 5):
            remove_folder(path)
"""


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """After SIGKILL at any moment of a save or a removal there is a whole checkpoint, and cleaning keeps it."""
    save(tmp_path, 1, "whole")
    root = Path(__file__).resolve().parents[2]
    for delay in (0.01, 0.023, 0.037, 0.052, 0.071, 0.09):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for _ in range(2):
            found = latest(tmp_path)
            assert found is not None
            assert (found / "ridgeline.json").read_text() == "whole"
            clean(tmp_path)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    """A folder whose writing failed does not exist, under any name."""
    with pytest.raises(ValueError, match="range"), whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(bytes([999]))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that exists is not written to."""
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(CheckpointError, match=r"out: exists; remove it or name another"),
        whole_folder(tmp_path / "out"),
    ):
        pass


def test_no_room(tmp_path: Path) -> None:
    """When the system takes no more bytes, the error says so and how much is free, and nothing is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(CheckpointError, match=r"out: no room to write it \(File too large; [\d.]+ MB are free\)"),
            whole_folder(tmp_path / "out") as folder,
        ):
            (folder / "a").write_bytes(b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_other_disk_errors_are_told(tmp_path: Path) -> None:
    """An error that is no lack of room is told as the system tells it."""
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a/b")
    assert disk_sentence(error, tmp_path / "out") == f"folder={tmp_path}/out: Permission denied: /a/b"


@pytest.mark.parametrize("keep_last", [1, 2, 3, 10])
def test_as_many_stay_as_asked(keep_last: int) -> None:
    """So many stay as asked, the newest among them."""
    steps = {10, 20, 30, 40}
    left = steps - set(expired(steps, keep_last=keep_last, newest=20))
    assert len(left) == min(keep_last, 4)
    assert 20 in left
