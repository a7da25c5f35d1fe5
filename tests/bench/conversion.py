"""A conversion to tp2 pp2 and back, against ``cp -r`` and ``sync`` of the same bytes; and its memory on a large model.

    python -m tests.bench.conversion [GB [LARGE_GB]]

The large model's weights are holes in its files: they read as zeros, and only the result takes room on the disk.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.checkpoint.io.hf import hf_tensors
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.safetensors import Entry, header_of, stream_safetensors
from ridgeline.checkpoint.pieces import row_major
from ridgeline.checkpoint.published import plan_files, published_buffers
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat
from ridgeline.core.params import num_params
from ridgeline.models.hf_config import hf_config_of

BOUND_RATIO = 1.5
BOUND_BYTES = 1 << 30
ROUNDS = 3
NOISE = 1 << 26


def model_of(gigabytes: float) -> ModelSpec:
    """A Llama of about so many bytes in bf16."""
    hidden, ffn, vocab = 2048, 8192, 32000
    attention = Attention(heads=32, kv_heads=8, head_dim=64)
    block = Block(mixer=attention, feed_forward=Mlp(ffn_hidden=ffn))
    spec = {"vocab_size": vocab, "hidden": hidden, "max_position": 4096, "family": "llama"}
    each = num_params(ModelSpec(blocks=(Repeat(block=block, count=2),), **spec)) - 2 * vocab * hidden - hidden
    layers = max(2, round((gigabytes * 5e8 - 2 * vocab * hidden) / (each / 2)) // 2 * 2)
    return ModelSpec(blocks=(Repeat(block=block, count=layers),), **spec)


def write_model(folder: Path, model: ModelSpec, *, holes: bool) -> int:
    """A Hugging Face folder of a model, in files of up to 1 GB; its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config_of(model)))
    noise = torch.randint(0, 256, (NOISE,), dtype=torch.uint8).numpy().data
    entries = [Entry(buffer.name, torch.bfloat16, buffer.shape) for buffer in published_buffers(model)]
    files = plan_files([entry.bytes for entry in entries], max_bytes=10**9)
    for file in files:
        chosen = [entries[index] for index in file.tensors]
        with (folder / file.name).open("wb") as stream:
            if holes:
                _write_holes(stream, chosen)
            else:
                stream_safetensors(stream, chosen, (_noise(noise, entry.bytes) for entry in chosen))
    where = {entries[index].name: file.name for file in files for index in file.tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return sum(entry.bytes for entry in entries)


def main(gigabytes: float = 2.5, large: float = 20.0) -> int:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        slow = compare_with_copy(Path(name), gigabytes)
        heavy = measure_memory(Path(name), large) if large else False
    return int(slow or heavy)


def compare_with_copy(root: Path, gigabytes: float) -> bool:
    """Print how long both ways take, in turn with copies of the same bytes; whether they are too slow."""
    source = root / "hf"
    size = write_model(source, model_of(gigabytes), holes=False)
    there, back = Wanted(format="classic", layout=Layout(tp=2, pp=2)), Wanted(format="hf")
    ratios: dict[str, list[float]] = {"there": [], "back": []}
    subprocess.run(["sync"], check=True)
    for _ in range(ROUNDS):
        for way, begin, wanted in (("there", source, there), ("back", root / "classic", back)):
            copied = _timed(lambda begin=begin: _copy(begin, root / "copy"))
            shutil.rmtree(root / "copy")
            out = root / ("classic" if way == "there" else "again")
            taken = _timed(lambda b=begin, w=wanted, o=out: convert(plan_conversion(b, w), o))
            ratios[way].append(taken / copied)
            print(f"{size / 1e9:.1f} GB {way}: {taken:.1f} s, cp -r and sync {copied:.1f} s", flush=True)
        assert _same(source, root / "again")
        for folder in ("classic", "again"):
            shutil.rmtree(root / folder)
    medians = {way: sorted(values)[len(values) // 2] for way, values in ratios.items()}
    print(f"to tp2 pp2 {medians['there']:.2f}, back {medians['back']:.2f} times cp -r and sync, at most {BOUND_RATIO}")
    return max(medians.values()) > BOUND_RATIO


def measure_memory(root: Path, gigabytes: float) -> bool:
    """Print the peak of anonymous memory of a conversion, above what is there before it; whether it is too high."""
    model = model_of(gigabytes)
    size = write_model(root / "large", model, holes=True)
    before, peak, done = _anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wanted = Wanted(format="classic", layout=Layout(tp=2, pp=2))
    seconds = _timed(lambda: convert(plan_conversion(root / "large", wanted), root / "out"))
    done.set()
    watcher.join()
    used = peak[0] - before
    print(f"{size / 1e9:.1f} GB to tp2 pp2 in {seconds:.0f} s: {used / 1e6:.0f} MB of anonymous memory at the peak")
    return used > BOUND_BYTES


def _timed(action: Callable[[], object]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync", *(path for path in target.rglob("*") if path.is_file())], check=True)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors."""
    ours, theirs = hf_tensors(one), hf_tensors(other)
    return ours.keys() == theirs.keys() and all(_equal(ours[name], theirs[name]) for name in ours)


def _equal(one: FileTensor, other: FileTensor) -> bool:
    """Equal bits, of which some are no number."""
    bits = [t.strided(0, t.shape, row_major(t.shape)).contiguous().view(torch.int16) for t in (one, other)]
    return torch.equal(*bits)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _noise(noise: memoryview, size: int) -> list[memoryview]:
    return [noise[: min(NOISE, size - begin)] for begin in range(0, size, NOISE)]


def _write_holes(stream: BinaryIO, entries: list[Entry]) -> None:
    """A file whose tensors are holes: the header of a real one, and its length."""
    header = header_of(entries)
    stream.write(len(header).to_bytes(8, "little") + header)
    stream.truncate(8 + len(header) + sum(entry.bytes for entry in entries))


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
