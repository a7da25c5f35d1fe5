"""Several processes on this machine, started, watched and stopped together."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from ridgeline.apps.runtime.local import run_together


def program(text):
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_each_process_knows_its_rank(tmp_path):
    """Ranks, the world and one address for all are in the environment, as torchrun puts them."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"import os; open('{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in {names}))"
    assert run_together([sys.executable, "-c", code], processes=2) == 0
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert (first[:3], second[:3]) == (["0", "0", "2"], ["1", "1", "2"])
    assert first[3:] == second[3:]


def test_the_code_of_the_first_failure_is_the_code_of_all(capfd):
    """Those that would run on are stopped within seconds."""
    began = time.monotonic()
    command = program("import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)")
    assert run_together(command, processes=2, grace_seconds=0.5) == 7
    assert time.monotonic() - began < 20
    assert capfd.readouterr().err == ""


def test_a_killed_process_is_named(capfd):
    """Nobody else can tell of it, so the watcher does."""
    kill = "os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else None"
    assert run_together(program(f"import os; {kill}"), processes=2) == 1
    said = capfd.readouterr().err
    assert said.startswith("rank 1 was killed by SIGKILL (was the machine out of memory?); ")
    assert said.count("\n") == 1


def test_the_killed_one_is_named_where_another_failed_of_it(capfd, monkeypatch):
    """Also when both have ended by the time of a look."""
    monkeypatch.setattr(subprocess.Popen, "poll", subprocess.Popen.wait)
    end = "sys.exit(7) if os.environ['RANK'] == '0' else os.kill(os.getpid(), 9)"
    assert run_together(program(f"import os, sys; {end}"), processes=2) == 1
    assert capfd.readouterr().err.startswith("rank 1 was killed by SIGKILL")


def test_a_signal_reaches_every_process_once(tmp_path):
    """And all may end in their own time, with their own code."""
    child = f"""
        import os, signal, time
        seen = []
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        open("{tmp_path}/ready" + os.environ["RANK"], "w").close()
        while not seen:
            time.sleep(0.01)
        time.sleep(0.3)
        open("{tmp_path}/" + os.environ["RANK"], "w").write(str(len(seen)))
    """
    parent = (
        f"from ridgeline.apps.runtime.local import run_together\nprint(run_together({program(child)!r}, processes=2))"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"ready{rank}").exists() for rank in "01"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGTERM)
        output, _ = running.communicate(timeout=60)
    assert output == "0\n"
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["1", "1"]
