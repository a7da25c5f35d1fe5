"""A file keeps what it had until the new text is on the disk, whatever cuts the writing off."""

import os
import resource
import subprocess
import sys
import threading

import pytest

from ridgeline.apps.files import write_whole
from ridgeline.core.errors import SpecError

WRITES_FOR_EVER = """
import sys
from pathlib import Path
from ridgeline.apps.files import write_whole
while True:
    for letter in "ab":
        write_whole(Path(sys.argv[1]), letter * 3_000_000, option="--file")
"""
OLD = "what was there before"


def test_the_text_is_there_and_nothing_else(tmp_path):
    """Under its name, as UTF-8, open to whom the umask lets; an older file keeps its mode."""
    path = tmp_path / "plan.html"
    write_whole(path, "ä", option="--html")
    assert path.read_bytes() == "ä".encode()
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o640)
    write_whole(path, "b", option="--html")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("b", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """And no other; the message names the option, the file and the reason."""
    path = tmp_path / "job.sh"
    path.write_text(OLD)
    run = subprocess.run(
        [sys.executable, "-m", "ridgeline", "launch", "qwen3-0.6b", "--file", str(path)],
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 2
    assert f"--file='{path}': cannot be written: File too large" in run.stderr
    assert run.stdout == ""
    assert path.read_text() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_a_whole_file(tmp_path):
    """Whoever looks, whenever, sees the one text or the other, also after the writer is gone."""
    path = tmp_path / "plan.json"
    writer = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, str(path)])
    seen = set()
    while len(seen) < 2 and writer.poll() is None:
        if path.exists():
            text = path.read_text()
            assert text in ("a" * 3_000_000, "b" * 3_000_000)
            seen.add(text[0])
    writer.kill()
    assert writer.wait() == -9
    assert len(set(path.read_text())) == 1
    assert path.stat().st_size == 3_000_000


def test_what_may_not_be_replaced_is_not(tmp_path):
    """Neither a file, nor a link that leads nowhere, nor one that another process makes meanwhile."""
    path, link = tmp_path / "job.toml", tmp_path / "link.toml"
    path.write_text(OLD)
    link.symlink_to(tmp_path / "nowhere")
    for one in (path, link):
        with pytest.raises(SpecError, match=r"exists already; name another file"):
            write_whole(one, "new", option="--output", replace=False)
    assert path.read_text() == OLD
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_a_folder_is_no_file(tmp_path):
    """A folder at the name, or none above it, is told; nothing is left."""
    (tmp_path / "here").mkdir()
    for name in ("here", "nowhere/plan.html"):
        with pytest.raises(SpecError, match=rf"--html='{tmp_path / name}': cannot be written"):
            write_whole(tmp_path / name, "new", option="--html")
    with pytest.raises(SpecError, match=rf"make the folder {tmp_path / 'nowhere'} first"):
        write_whole(tmp_path / "nowhere/plan.html", "new", option="--html")
    assert list(tmp_path.iterdir()) == [tmp_path / "here"]


def test_a_pipe_is_written_straight(tmp_path):
    """``/dev/stdout`` and its like stay what they are."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "new", option="--trace")
    reader.join()
    assert read == ["new"]
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path):
    """What it points to is written."""
    path, link = tmp_path / "plan-7.html", tmp_path / "latest.html"
    path.write_text(OLD)
    link.symlink_to(path)
    write_whole(link, "new", option="--html")
    assert link.is_symlink()
    assert path.read_text() == "new"
