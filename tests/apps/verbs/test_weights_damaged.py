"""Weights that are damaged, lie or hold code, as a person meets them at the command line."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ridgeline.apps.cli import run
from tests.checkpoint.damage import (
    BIN,
    INDEX,
    Damage,
    Evil,
    as_bin,
    cut,
    damaged,
    header,
    indexed,
    linked,
    pickled_evil,
    saying,
    without,
)
from tests.checkpoint.hf_models import random_model

SHARD = "model-00002-of-00004.safetensors"
NORM = "model.layers.0.input_layernorm.weight"
FILE = "iter_0000001/mp_rank_01_002/model_optim_rng.pt"
WEIGHTS = "__0_0.distcp"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in every format."""
    root = tmp_path_factory.mktemp("good")
    random_model("Llama").save_pretrained(root / "hf", max_shard_size="60KB")
    assert run(["convert", str(root / "hf"), str(root / "classic"), "--tp", "2", "--pp", "3"]) == 0
    assert run(["convert", str(root / "hf"), str(root / "dist"), "--format", "torch_dist"]) == 0
    assert run(["convert", str(root / "hf"), str(root / "copy"), "--format", "hf"]) == 0
    return {path.name: path for path in root.iterdir()}


def state_of(folder: Path) -> dict[str, tuple[bytes | str, int]]:
    """All names under a folder, with contents and times."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "",
            path.lstat().st_mtime_ns if not path.is_dir() else 0,
        )
        for path in folder.rglob("*")
    }


Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Told:
    """Runs a command that must fail: what it told, with nothing changed or made on the disk."""

    def fails(*arguments: object, code: int = 2) -> str:
        before = state_of(tmp_path)
        capfd.readouterr()
        assert run([str(argument) for argument in arguments]) == code
        assert state_of(tmp_path) == before
        captured = capfd.readouterr()
        said = captured.out + captured.err
        assert "Traceback" not in said
        assert "fault of Ridgeline" not in said
        return said.replace(str(tmp_path), "")

    return fails


def twice(table: dict[str, object]) -> bytes:
    text = json.dumps(table)
    return (text[:-1] + ", " + json.dumps({NORM: table[NORM]})[1:]).encode()


def at(first: int, last: int) -> Callable[[dict], None]:
    return lambda table: table[NORM].update(data_offsets=[first, last])


HF: dict[str, tuple[Damage, str]] = {
    "a shard cut short": (cut(SHARD), rf"file=/bad/{SHARD}: is damaged or cut short: \S+ would end at byte .* again"),
    "a shard of no bytes": (saying(SHARD, ""), f"{SHARD}: is damaged or cut short: it is empty"),
    "a missing shard": (without(SHARD), f"{INDEX}: names files that are absent: {SHARD}; fetch them too"),
    "a link out": (linked(SHARD, "/etc/hostname"), f"{SHARD}: is a link to /etc/hostname, out of .*: refused"),
    "an index out of its folder": (indexed(a="../hf/x"), "names '../hf/x', which is no file of its folder: refused"),
    "an index to the root": (indexed(a="/etc/passwd"), "names '/etc/passwd', which is no file of its folder: refused"),
    "an index to the folder above": (indexed(a=".."), "names '..', which is no file of its folder: refused"),
    "an index of numbers": (indexed(a=5), "is no index of weights: its weight_map names no files"),
    "an index cut short": (cut(INDEX, 50), f"file=/bad/{INDEX}: is damaged or cut short: .*; fetch or write it again"),
    "an index without end": (saying(INDEX, "[" * 100_000), "is damaged or cut short: its JSON is nested too deeply"),
    "an index that is a list": (saying(INDEX, "[]"), "is damaged or cut short: it is no JSON object"),
    "a config cut short": (cut("config.json", 30), "config.json': is not JSON: Input data was truncated"),
    "no config": (without("config.json"), "hf='/bad': cannot be read: No such file .*; give a folder that holds a"),
    "another size in the config": (
        lambda folder: saying("config.json", (folder / "config.json").read_text().replace("56", "64"))(folder),
        r"mlp.gate_proj.weight: has shape \(56, 48\), expected \(64, 48\)",
    ),
    "bytes that overlap": (header(NORM, at(64, 256)), r"\S+ begins at byte \d+, the one before ends at \d+"),
    "bytes before the start": (header(NORM, at(-192, 0)), rf"{NORM} lies at \[-192, 0\]"),
    "bytes beyond the end": (header(NORM, at(10**12, 10**12 + 192)), rf"{NORM} would end at byte 1000000000192 of \d+"),
    "a name twice": (header(NORM, twice), f"{NORM} stands in it twice"),
    "a shape without end": (
        header(NORM, lambda table: table.update(a={"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]})),
        "a is of shape",
    ),
    "no dtype": (
        header(NORM, lambda table: table[NORM].pop("dtype")),
        f"{NORM} is not told by data_offsets, dtype, shape",
    ),
    "whole numbers for weights": (
        header(NORM, lambda table: table[NORM].update(dtype="I32")),
        f"{NORM}: is of dtype int32, expected a floating-point one",
    ),
    "a header of all the disk": (saying(SHARD, b"\xff" * 64), "its header would be 18446744073709551615 bytes of 64"),
    "code": (
        as_bin(lambda tensors, folder: tensors.update(a=Evil(f"{folder}.ran"))),
        rf"{BIN}: asks for posix.system, which is neither a tensor nor plain data: refused, it could run code",
    ),
    "code at once": (pickled_evil, f"{BIN}: is damaged, cut short, or of the format before torch 1.6: .* again"),
    "weights in a list": (as_bin(lambda tensors, _: [1]), "holds a list, expected tensors by name: refused"),
    "weights by number": (
        as_bin(lambda tensors, _: tensors.update({5: torch.zeros(3)})),
        "holds 5, a FileTensor, expected tensors by name: refused",
    ),
    "sparse weights": (
        as_bin(lambda tensors, _: tensors.update({NORM: tensors[NORM].to_sparse()})),
        "asks for torch._utils._rebuild_sparse_tensor, which is neither a tensor nor plain data: refused",
    ),
    "weights elsewhere": (
        as_bin(lambda tensors, _: tensors.update({NORM: torch.ones(48, device="meta")})),
        "asks for torch._utils._rebuild_meta_tensor_no_storage, which is neither",
    ),
    "a format of old": (
        as_bin(lambda *_: None, _use_new_zipfile_serialization=False),
        "is damaged, cut short, or of the format before torch 1.6",
    ),
}


@pytest.mark.parametrize("case", HF)
def test_hugging_face(good: dict[str, Path], tmp_path: Path, told: Told, case: str) -> None:
    """Converting, planning to and inspecting name the file, the value and the rule; no code in it is run."""
    damage, rule = HF[case]
    bad = damaged(good["hf"], tmp_path / "bad", damage)
    for command in (("convert", bad, tmp_path / "out"), ("convert", bad, "--dry-run"), ("inspect", bad)):
        assert_told(told(*command), rule)
    assert not (tmp_path / "bad.ran").exists()


def assert_told(said: str, rule: str) -> None:
    assert re.search(rule, said), said


def moved_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside")
    (folder / WEIGHTS).symlink_to("../outside")


OTHERS: dict[str, tuple[str, Damage, str]] = {
    "a file cut short": ("classic", cut(FILE), f"{FILE}: is damaged, cut short, or of the format before .* again"),
    "no file": ("classic", without(FILE), "mp_rank_01_002/model_optim_rng.pt: is missing"),
    "no step": ("classic", without("iter_0000001"), "names step '1', and iter_0000001 is not there"),
    "a pointer up": ("classic", saying("latest_checkpointed_iteration.txt", "../x"), "names step '../x', and x is not"),
    "a pointer of noise": ("classic", saying("latest_checkpointed_iteration.txt", b"\xff"), "names step .* is not the"),
    "no pointer": (
        "classic",
        without("latest_checkpointed_iteration.txt"),
        "latest_checkpointed_iteration.txt: is missing; write it, or name one step: iter_0000001",
    ),
    "a record cut short": ("classic", cut("ridgeline.json", 9), "file='/bad/ridgeline.json': is not json: Input data"),
    "a link in place of a file": ("classic", linked(FILE, "/etc/hostname"), f"{FILE}: is a link to /etc/hostname"),
    "a file of weights cut short": ("dist", cut(WEIGHTS), rf"{WEIGHTS}: is damaged: it holds \d+ bytes, expected \d+"),
    "no file of weights": ("dist", without(WEIGHTS), rf"{WEIGHTS}: is missing, expected \d+ bytes"),
    "weights linked out": ("dist", moved_out, f"{WEIGHTS}: is a link to /outside, out of /bad: refused"),
    "no index": ("dist", without(".metadata"), r".metadata: is missing, expected \d+ bytes"),
    "a checksum file of noise": ("copy", saying("conversion.json", "[]"), "conversion.json: is damaged or cut short"),
    "a file of weights that is gone": ("copy", without("model.safetensors"), "holds neither model.safetensors nor"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_was_converted(good: dict[str, Path], tmp_path: Path, told: Told, case: str) -> None:
    """Inspecting finds it and says what; and so does --verify, which reads all that stands beside the weights too."""
    name, damage, rule = OTHERS[case]
    bad = damaged(good[name], tmp_path / "bad", damage)
    assert_told(told("inspect", bad), rule)
    said = told("convert", bad, "--verify")
    assert_told(said, rf"is damaged|is missing|{rule}")
    if name != "copy":
        assert_told(told("convert", bad, tmp_path / "out", "--format", "hf"), rule)


def test_checksums_that_lie(good: dict[str, Path], tmp_path: Path, told: Told) -> None:
    """A manifest is believed only where it is one: no path out of the folder, no place before the file."""
    for change, rule in (
        (lambda file: file.update(name="../x"), r"'\.\./x' is no file within the folder"),
        (lambda file: file.update(name=None), "None is no file within the folder"),
        (lambda file: file.update(bytes="x"), "'x' counts nothing"),
        (lambda file: file["tensors"][0].update(start=-5), "-5 counts nothing"),
        (lambda file: file["tensors"][0].pop("crc32"), "KeyError: 'crc32'"),
    ):
        bad = damaged(good["copy"], tmp_path / f"bad{rule[0]}{len(rule)}", lambda _: None)
        manifest = json.loads((bad / "conversion.json").read_text())
        change(manifest["files"][0])
        (bad / "conversion.json").write_text(json.dumps(manifest))
        for command in (("inspect", bad), ("convert", bad, "--verify")):
            assert_told(told(*command), rf"conversion.json: is damaged: \w+: .*{rule.removeprefix('KeyError: ')}")


def test_where_it_is_to_go(good: dict[str, Path], tmp_path: Path, told: Told) -> None:
    """What stands at the destination or beside it stays as it is, and options that do nothing there are refused."""
    source = good["hf"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("file", "link", "folder"):
        assert f"folder=/{name}: exists; remove it or name another" in told("convert", source, tmp_path / name)
    assert "folder=/file/out: Not a directory" in told("convert", source, tmp_path / "file" / "out")
    assert "File name too long" in told("convert", source, tmp_path / ("x" * 300))
    (tmp_path / ".tmp-out").mkdir()
    (tmp_path / ".tmp-out" / "mine").write_text("mine")
    said = told("convert", source, tmp_path / "out")
    assert "folder=/.tmp-out: is in the way, and no conversion made it; move or remove it" in said
    out = tmp_path / "out2"
    assert "holds none of tokenizer.json" in told("convert", source, out, "--format", "hf", "--tokenizer", tmp_path)
    assert "tokenizer=x: has no effect on format='classic'" in told(
        "convert", source, out, "--tp", 2, "--tokenizer", "x"
    )
    assert "has no effect on format='hf'" in told("convert", source, out, "--format", "hf", "--experts", "grouped")
    assert "adapter_config.json: is missing" in told("convert", source, out, "--adapter", tmp_path)
    weights = next(source.glob("*.safetensors"))
    assert f"is no folder; name the folder that it lies in: {source}" in told("convert", weights, out)


def test_two_at_once(good: dict[str, Path], tmp_path: Path, told: Told) -> None:
    """A conversion that another one is writing is left to it."""
    import fcntl

    (tmp_path / ".tmp-out").mkdir()
    with (tmp_path / ".tmp-out" / ".journal").open("w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        said = told("convert", good["hf"], tmp_path / "out")
    assert "folder=/.tmp-out: another conversion is writing it; wait for its end, or write elsewhere" in said
    assert run(["convert", str(good["hf"]), str(tmp_path / "out"), "--verify"]) == 0


NAMES_CHANGE = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def killed_before(change: int, within: Path, arguments: list[str]) -> int:
    """Run a command that is killed before it changes a folder for the so-manieth time; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [change]

    def audit(event: str, details: tuple[object, ...]) -> None:
        writes = event in NAMES_CHANGE and not (event == "open" and details[1] in ("r", "rb"))
        if writes and str(details[0]).startswith(str(within)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    os._exit(run(arguments))


@pytest.mark.parametrize(
    ("format", "step"),
    [("classic", 4), *(pytest.param(name, 1, marks=pytest.mark.full) for name in ("hf", "torch_dist", "classic"))],
)
def test_killed_before_a_change_of_the_disk(good: dict[str, Path], tmp_path: Path, format: str, step: int) -> None:
    """Killed before any file is made, renamed or removed: the name is free or whole, and a new start ends it."""
    source, out, before = good["hf"], tmp_path / "out", state_of(good["hf"])
    command = ["convert", str(source), str(out), "--format", format, *(["--tp", "2"] if format == "classic" else [])]
    change, code = 1, -signal.SIGKILL
    while (code := killed_before(change, tmp_path, command)) == -signal.SIGKILL:
        change += step
        assert not out.exists() or run(["convert", str(out), "--verify"]) == 0
    assert code == 0
    assert change > 4
    assert run(["inspect", str(out), "--against", str(source)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert state_of(source) == before
