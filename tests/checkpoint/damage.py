"""Ways in which a folder of weights can be wrong: each changes a copy of a good one."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file

Damage: TypeAlias = Callable[[Path], object]

INDEX, BIN = "model.safetensors.index.json", "pytorch_model.bin"


class Evil:
    """A pickle that runs code, seen by a file that it makes."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def damaged(good: Path, out: Path, damage: Damage) -> Path:
    """A copy of a folder, damaged."""
    shutil.copytree(good, out)
    damage(out)
    return out


def cut(name: str, count: int = 1) -> Damage:
    """A file whose last bytes are missing."""
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - count)


def without(name: str) -> Damage:
    """A file or a folder that is missing."""
    return lambda folder: (folder / name).unlink() if (folder / name).is_file() else shutil.rmtree(folder / name)


def saying(name: str, data: bytes | str) -> Damage:
    """A file with other contents."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return damage


def linked(name: str, target: str) -> Damage:
    """A link in a file's place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def indexed(**files: Any) -> Damage:
    """One more tensor in the index, in the file that its name is given."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] |= files
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def header(tensor: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A header, of the file with a tensor, that lies; what ``change`` gives, if anything, is its text."""

    def damage(folder: Path) -> None:
        path = folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        table = json.loads(data[8:begin])
        changed = change(table)
        text = changed if isinstance(changed, bytes) else json.dumps(table).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])

    return damage


def as_bin(change: Callable[[dict[Any, Any], Path], Any], **options: Any) -> Damage:
    """The same weights as torch's ``.bin``, changed; what ``change`` gives, if anything, is what is saved."""

    def damage(folder: Path) -> None:
        tensors: dict[Any, Any] = {}
        for path in folder.glob("*.safetensors"):
            tensors |= load_file(path)
            path.unlink()
        (folder / INDEX).unlink(missing_ok=True)
        changed = change(tensors, folder)
        torch.save(tensors if changed is None else changed, folder / BIN, **options)

    return damage


def pickled_evil(folder: Path) -> None:
    """A bare pickle in place of a ``.bin``."""
    as_bin(lambda tensors, _: None)(folder)
    (folder / BIN).write_bytes(pickle.dumps(Evil(f"{folder}.ran")))
