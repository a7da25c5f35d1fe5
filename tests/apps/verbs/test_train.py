"""``ridgeline train``: runs that are stopped, killed, resumed, and those that cannot start."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import attrs
import psutil
import pytest

from ridgeline.apps.cli import run
from ridgeline.apps.measured import read_runs
from ridgeline.apps.profiles.folders import read_profiles
from ridgeline.apps.profiles.summary import step_us
from ridgeline.core.job import Data, Init, Profile, Source
from ridgeline.core.layout import Layout
from tests.apps.runs import (
    command,
    command_told,
    failure_of,
    failure_on_full_disk,
    prepare,
    text_of,
    tiny_job,
    train_job,
    train_until_signal,
)

CURVE = ("loss", "grad_norm", "lr", "tokens", "consumed_samples")


@pytest.fixture(scope="module")
def folder(ranks, tmp_path_factory):
    """A text and its tokenizer."""
    folder = tmp_path_factory.mktemp("train")
    assert ranks.run(prepare, 1, str(folder)) == [512]
    return folder


def metrics_of(job):
    return [json.loads(line) for line in (Path(job.run.output) / "metrics.jsonl").read_text().splitlines()]


def curve_of(job):
    """What must not change: the figures of every step that do not tell of time."""
    return [{"step": line["step"], **{name: line[name] for name in CURVE}} for line in metrics_of(job)]


def checkpoints_of(job):
    return sorted(path.name for path in (Path(job.run.output) / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(ranks, folder):
    """A run that nothing interrupts."""
    job = tiny_job(folder, output="whole", valid_every=4, keep_last=2)
    first, second = ranks.run(train_job, 2, text_of(job))
    assert (first["step"], first["stopped"], second["shown"]) == (8, False, "")
    return job, first["shown"]


def test_a_run_logs_every_step(whole):
    """A line of text, a line of JSON and a point of every curve for each step, validations and checkpoints as asked."""
    job, shown = whole
    lines = metrics_of(job)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines if "valid_loss" in line] == [4, 8]
    assert [line["consumed_samples"] for line in lines] == list(range(8, 72, 8))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["tokens"] == 8 * 32 and line["tokens_per_s"] > 0 and 0 < line["mfu"] < 10 for line in lines)
    assert re.search(r"step 8/8  loss \d\.\d{4}  valid loss \d\.\d{4}  grad norm .* MFU .*% \(planned .*%\)", shown)
    assert "a new run, with random weights" in shown
    assert "planned: " in shown
    assert checkpoints_of(job) == ["latest", "step_0000006", "step_0000008"]
    assert list((Path(job.run.output) / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_stopped_and_resumed_has_the_same_curve(ranks, folder, whole):
    """Bit for bit, with the save in the background too; and it says that and where it goes on."""
    job = tiny_job(folder, output="stopped", valid_every=4, keep_last=2, async_save=True)
    first = ranks.run(train_job, 2, text_of(job), 5)[0]
    assert (first["step"], first["stopped"]) == (5, True)
    assert (Path(job.run.output) / "checkpoints" / "latest").read_text() == "step_0000005\n"
    second = ranks.run(train_job, 2, text_of(job))[0]
    assert (second["step"], second["stopped"]) == (8, False)
    assert f"resumed from {job.run.output}/checkpoints/step_0000005 at step 5 of 8" in second["shown"]
    assert "changed" not in second["shown"]
    assert curve_of(job) == curve_of(whole[0])


def test_two_deterministic_runs_give_equal_bits(ranks, folder):
    """Curves and every file of a checkpoint are the same, byte for byte."""
    job = tiny_job(folder, output="deterministic", deterministic=True, steps=3, save_every=None)
    kept = []
    for _ in range(2):
        ranks.run(train_job, 2, text_of(job))
        output = Path(job.run.output)
        saved = output / "checkpoints"
        files = {str(path.relative_to(saved)): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
        kept.append((curve_of(job), files))
        shutil.rmtree(output)
    (curve, files), (again, files_again) = kept
    assert curve == again
    assert any(name.endswith(".distcp") for name in files)
    assert [name for name in files.keys() | files_again.keys() if files.get(name) != files_again.get(name)] == []


def test_a_profiled_run(ranks, folder, capsys):
    """Each asked rank's steps are traced and summed up at the end; the folder tells it again, and calibrates."""
    job = tiny_job(folder, output="profiled", steps=4, save_every=None)
    job = attrs.evolve(job, profile=Profile(start=1, end=3, ranks=(-1,), shapes=True))
    shown, _ = (result["shown"] for result in ranks.run(train_job, 2, text_of(job)))
    assert "A step in the mean, ms" in shown
    output = Path(job.run.output) / "profile"
    assert sorted(path.name.split(".")[0] for path in output.glob("*.pt.trace.json")) == ["rank0", "rank1"]
    profiles = read_profiles(output)
    for profile in profiles:
        assert [step.step for step in profile.steps] == [1, 2]
        for step in profile.steps:
            assert step.total_us == pytest.approx(step.compute_us + step.exposed_us + step.idle_us)
            assert step.communication_us > 0
        assert {"aten::mm", "aten::addmm"} & {op.name for op in profile.ops}
    seconds = [line["seconds"] for line in metrics_of(job)[1:3]]
    assert step_us(profiles) >= 1e6 * min(seconds)  # a step of the profile reaches into what follows it
    assert run(["profile", str(output), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    (measured,) = read_runs(output)
    assert (measured.step_us, measured.job.batch) == (step_us(profiles), job.batch)


def test_another_layout_goes_on_with_the_same_curve(ranks, folder, whole):
    """Within rounding; what is not as it was is said."""
    job = tiny_job(folder, output="relaid")
    ranks.run(train_job, 2, text_of(job), 4)
    other = attrs.evolve(job, layout=Layout(tp=2, sp=True))
    shown = ranks.run(train_job, 2, text_of(other))[0]["shown"]
    assert "changed since it was saved: layout.tp: 1 -> 2" in shown
    assert [line["loss"] for line in curve_of(job)] == pytest.approx(
        [line["loss"] for line in curve_of(whole[0])], rel=1e-5
    )


def test_a_signal_to_one_rank_stops_all_and_saves(ranks, folder):
    """The step under way ends on every rank, and what was trained is on the disk."""
    job = tiny_job(folder, output="signalled", steps=5000, save_every=None)
    first, second = ranks.run(train_until_signal, 2, text_of(job), 3)
    assert first["stopped"]
    assert first["step"] == second["step"] >= 3
    assert f"stopped at step {first['step']} of 5000, saved in " in first["shown"]
    assert checkpoints_of(job) == ["latest", f"step_{first['step']:07d}"]


def test_a_finished_run_has_nothing_to_do(ranks, folder, whole):
    """Starting it again trains nothing and changes nothing."""
    job, _ = whole
    before = metrics_of(job)
    again = ranks.run(train_job, 2, text_of(job))[0]
    assert (again["step"], again["loss"], again["stopped"]) == (8, None, False)
    assert metrics_of(job) == before


def test_a_new_run_starts_from_the_weights_of_another(ranks, folder, whole):
    """The weights alone: its steps count from zero."""
    source = Path(whole[0].run.output)
    job = attrs.evolve(tiny_job(folder, output="from", steps=4), init=Init(checkpoint=str(source)))
    shown = ranks.run(train_job, 2, text_of(job))[0]["shown"]
    assert f"a new run, with {source} weights" in shown
    first = metrics_of(job)[0]
    assert first["step"] == 1
    assert first["loss"] < metrics_of(whole[0])[0]["loss"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": Data()}, "SpecError", r"data\.sources=\(\): must name at least one corpus .*--data\.sources PATH"),
        ({"data": "empty"}, "DataError", r"empty\.txt: is empty \(0 bytes\)"),
        ({"data": "missing"}, "DataError", r"nowhere"),
        ({"data": "broken"}, "DataError", r"broken"),
        ({"vocab_size": 300}, "DataError", r"tokenizer='.*': its ids reach 511, but model\.vocab_size=300"),
        ({"init": Init(hf="/nowhere")}, "CheckpointError|SpecError", r"/nowhere"),
        ({"devices": 2}, "SpecError", r"world_size=1: processes were started, .* nodes=1 \* devices_per_node=2 = 2"),
        ({"model": "wider"}, "CheckpointError", r"is of another model.*\n.*model\.hidden: 32 -> 64"),
        ({"layout": Layout(pp=3)}, "PlanError", r"layout\.tp\*cp\*pp=3"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_told_before_the_first_step(ranks, folder, whole, change, error, message):
    """One message that names the field or the file, and exit code 2."""
    (folder / "empty.txt").write_text("")
    (folder / "broken.idx").write_bytes(b"MMIDIDX")
    (folder / "broken.bin").write_bytes(b"")
    job = tiny_job(folder, output="failed", world_size=change.get("devices", 1))
    sources = {"empty": "empty.txt", "missing": "nowhere", "broken": "broken"}
    if isinstance(change.get("data"), str):
        change = {"data": attrs.evolve(job.data, sources=(Source(path=str(folder / sources[change["data"]])),))}
    if "vocab_size" in change:
        change = {"model": attrs.evolve(job.model, vocab_size=change["vocab_size"])}
    if change.get("model") == "wider":
        run = attrs.evolve(job.run, output=whole[0].run.output)
        change = {"model": attrs.evolve(job.model, hidden=64), "run": run}
    if "devices" not in change:
        job = attrs.evolve(job, **change)
    (failed,) = ranks.run(failure_of, 1, text_of(job))
    assert re.fullmatch(error, failed[0]), failed
    assert re.search(message, failed[1], re.DOTALL), failed[1]
    assert failed[2] == 2


def test_a_trained_model_goes_out(ranks, folder, whole):
    """Exported, it is the same under transformers; from either it continues a text; changed, it is found out."""
    run, hf = whole[0].run.output, str(folder / "hf")
    assert ranks.run(command, 1, "convert", run, hf)[0] == (0, f"{hf}\n", "")
    ((code, out, _),) = ranks.run(command, 1, "convert", run, "--check", hf)
    assert code == 0
    assert re.search(r"under transformers agree: logits differ by \d\.\de-0[5-9] .* at 100% of positions", out)
    texts = {
        ranks.run(command, 1, "generate", model, "--prompt", "The statement", "--max-tokens", "8")[0][1]
        for model in (run, hf)
    }
    assert len(texts) == 1
    assert texts.pop().startswith("The statement")
    back = str(folder / "back")
    ranks.run(command, 1, "convert", hf, back)
    assert ranks.run(command, 1, "convert", back, "--check", hf)[0][0] == 0
    other = f"{folder / 'whole'}/checkpoints/step_0000006"
    ((code, out, _),) = ranks.run(command, 1, "convert", other, "--check", hf)
    assert code == 1
    assert "DO NOT AGREE" in out
    ((code, _, err),) = ranks.run(command_told, 1, "hello\n", "chat", hf)
    assert code == 2
    assert "has no chat template" in err


def test_a_full_disk_loses_nothing_saved(ranks, folder, whole):
    """Both ranks end with one sentence that names the folder; with room again the run goes on from what it had."""
    job = tiny_job(folder, output="full", valid_every=4)
    ranks.run(train_job, 2, text_of(job), 4)
    before = checkpoints_of(job)
    first, second = ranks.run(failure_on_full_disk, 2, text_of(job), 200_000)
    assert first == second
    assert first[0] == "CheckpointError"
    assert re.match(r"folder=.*/step_0000006: no room to write it", first[1])
    assert checkpoints_of(job) == before
    ranks.run(train_job, 2, text_of(job))
    assert curve_of(job) == curve_of(whole[0])


def test_a_killed_rank_stops_all_and_loses_nothing_saved(folder, ranks):
    """The launcher names the rank and ends within seconds; started again the curve is the same, bit for bit."""
    reference, job = (
        tiny_job(folder, output=name, steps=100, save_every=save_every)
        for name, save_every in (("reference", None), ("killed", 2))
    )
    ranks.run(train_job, 2, text_of(reference))
    file = folder / "killed.json"
    file.write_text(text_of(job))
    command = [sys.executable, "-m", "ridgeline", "train", str(file), "--local", "2"]
    log = Path(job.run.output) / "metrics.jsonl"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment_of()
    ) as run:
        deadline = time.monotonic() + 250
        while not (log.is_file() and len(log.read_text().splitlines()) >= 3):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        victim = next(child for child in psutil.Process(run.pid).children() if child.environ().get("RANK") == "1")
        victim.send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, errors = run.communicate(timeout=60)
        assert time.monotonic() - began < 15
    assert run.returncode == 1
    assert "rank 1 was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    made = len(metrics_of(job))
    assert 3 <= made < 100
    shown = ranks.run(train_job, 2, text_of(job))[0]["shown"]
    assert re.search(r"resumed from .*/step_00000\d\d at step \d+ of 100", shown)
    assert curve_of(job) == curve_of(reference)


def environment_of(**variables):
    """This process's variables without those of a rank, and some others."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "RIDGELINE_DEBUG")}
    return {**kept, **variables}


def test_a_port_in_use_is_one_clear_message(folder):
    """It names the port and the way out, at once."""
    file = folder / "port.json"
    file.write_text(text_of(tiny_job(folder, output="port")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        run = subprocess.run(
            [sys.executable, "-m", "ridgeline", "train", str(file)],
            env=environment_of(**rank), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert run.returncode == 1
    rule = f"MASTER_PORT={port}: the port is in use; set it, or torchrun --master-port, to a free one"
    assert run.stderr.splitlines()[-1] == f"rank 0: ridgeline: {rule}"  # torch may warn of the machine before
    assert "Traceback" not in run.stderr


@pytest.mark.full
def test_torchrun_starts_the_same_run(folder, whole):
    """With its own launcher the curve is that of the pool's ranks."""
    job = tiny_job(folder, output="torchrun", valid_every=4)
    file = folder / "torchrun.json"
    file.write_text(text_of(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, "-m", "ridgeline", "train", str(file)],
        env=environment_of(),
        check=True,
        capture_output=True,
        timeout=240,
    )
    assert curve_of(job) == curve_of(whole[0])


def test_exports_underway(ranks, folder):
    """Every export is the checkpoint of its step, and a run that starts from one begins with its weights."""
    job = tiny_job(
        folder, output="exports", layout=Layout(pp=2), steps=4, save_every=None, keep_last=1, export_hf_every=2
    )
    ranks.run(train_job, 2, text_of(job))
    run = Path(job.run.output)
    assert sorted(path.name for path in (run / "hf").iterdir()) == ["step_0000002", "step_0000004"]
    assert (run / "hf" / "step_0000004" / "tokenizer.json").is_file()
    assert checkpoints_of(job) == ["latest", "step_0000004"]
    assert command("inspect", str(run), "--against", str(run / "hf" / "step_0000004"))[0] == 0
    assert command("inspect", str(run), "--against", str(run / "hf" / "step_0000002"))[0] == 1
