"""Conversions that are done already, damaged since, killed, or out of room."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from ridgeline.checkpoint.io import convert as module
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion, verify
from ridgeline.core.errors import CheckpointError
from ridgeline.core.layout import Layout
from tests.checkpoint.conversions import CLASSIC, made, model_of, same_weights


def test_a_finished_conversion_is_known(folders: dict[str, Path], tmp_path: Path) -> None:
    """Started again it does nothing; another one into the same folder is refused, and so is any other folder."""
    wanted = CLASSIC["Llama"]
    out = made(folders["Llama"], tmp_path / "out", wanted)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert convert(plan_conversion(folders["Llama"], wanted), out).was_done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(CheckpointError, match="out: exists; remove it or name another"):
        convert(plan_conversion(folders["Llama"], Wanted(format="hf")), out)


def test_damage_after_the_fact_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    """One flipped bit, and the tensor is named; a file cut short, and the file is."""
    for name, wanted in (
        ("hf", Wanted(format="hf")),
        ("dist", Wanted(format="torch_dist")),
        ("classic", CLASSIC["Llama"]),
    ):
        out = made(folders["Llama"], tmp_path / name, wanted)
        path = max((path for path in out.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        good = path.read_bytes()
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        with pytest.raises(CheckpointError, match=rf"is damaged; convert again:\n  .*{path.name}: \S+"):
            verify(out)
        path.write_bytes(good[:-1])
        with pytest.raises(CheckpointError, match=f"holds {len(good) - 1} bytes, expected {len(good)}"):
            verify(out)
    with pytest.raises(CheckpointError, match="holds no checksums"):
        verify(folders["Llama"])


def killed_after(calls: int, source: Path, wanted: Wanted, out: Path) -> int:
    """Convert in a process that kills itself after so many chunks; its exit code."""
    child = os.fork()
    if child == 0:
        left = iter(range(calls, -1, -1))

        def progress(done: int, total: int) -> None:
            if next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        convert(plan_conversion(source, wanted), out, progress=progress)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_it_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    """Killed after any number of chunks nothing has the final name; at the end all is as it should be."""
    source, out, wanted = folders["Llama"], tmp_path / "out", Wanted(format="classic", layout=Layout(tp=2, pp=3))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    kills = 0
    for calls in range(1, 100, 4):
        if killed_after(calls, source, wanted, out) == 0:
            break
        kills += 1
        assert not out.exists()
    assert kills >= 4
    assert verify(out)
    assert same_weights(source, out, model_of(source))
    assert not list(tmp_path.glob(".tmp-*"))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_full_disk(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at once where it can be known; and nothing is left where it comes underway."""
    import resource

    planned = plan_conversion(folders["Llama"], Wanted(format="hf"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"no room to write it: 0\.\d MB are needed, 0\.0 MB are free"):
        convert(planned, tmp_path / "out")
    monkeypatch.undo()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="out: no room to write it"):
            convert(planned, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
