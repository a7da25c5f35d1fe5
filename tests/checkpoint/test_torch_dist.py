"""The torch_dist format, judged by Megatron-core's own reader and writer, and by damage."""

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from ridgeline.checkpoint.boxes import Box, whole
from ridgeline.checkpoint.io.torch_dist.index import COMMON, INDEX, read_index
from ridgeline.checkpoint.io.torch_dist.reader import open_checkpoint, read_box, read_common, read_object
from ridgeline.checkpoint.io.torch_dist.writer import ObjectItem, TensorItem, write_frame, write_index, write_items
from ridgeline.core.errors import CheckpointError
from tests.pool import Pool

SHAPE = (6, 5)
FULL = torch.arange(30, dtype=torch.float32).reshape(SHAPE)
BOXES = (Box((0, 0), (4, 2)), Box((0, 2), (4, 3)), Box((4, 0), (2, 5)))


def part(box: Box) -> torch.Tensor:
    (r, c), (n, m) = box.offset, box.shape
    return FULL[r : r + n, c : c + m].contiguous()


def write_checkpoint(folder: Path) -> None:
    """One tensor in boxes of uneven cuts over two files, and one object."""
    written = write_items(folder / "__0_0.distcp", [TensorItem("w", SHAPE, box, part(box)) for box in BOXES[:2]])
    items = [
        TensorItem("w", SHAPE, BOXES[2], part(BOXES[2])),
        ObjectItem("o/shard_0_1", {"a": [1, "x"], "t": torch.ones(2)}),
    ]
    write_index(folder, [*written, *write_items(folder / "__1_0.distcp", items)])
    write_frame(folder, {"iteration": 3})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return tmp_path


def load_in_megatron(folder: str) -> dict[str, object]:
    """Load columns of the tensor and the object with Megatron-core's default strategies, cut over its two ranks."""
    from megatron.core.dist_checkpointing import ShardedTensor, load
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    rank = torch.distributed.get_rank()
    halves = (0, rank, 2)
    state = {
        "w": ShardedTensor.from_rank_offsets("w", torch.zeros(3, 5), halves),
        "o": ShardedObject("o", None, (1,), (0,), replica_id=rank),
    }
    loaded = load(state, folder)
    return {"w": loaded["w"].tolist(), "o": loaded["o"]["a"], "iteration": loaded["iteration"]}


def save_in_megatron(folder: str) -> None:
    """Save columns of the tensor and an object with Megatron-core's default strategies."""
    from megatron.core.dist_checkpointing import ShardedTensor, save
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from ridgeline.kernels.device import open_device

    rank = torch.distributed.get_rank()
    rows = FULL[rank * 3 : rank * 3 + 3].bfloat16()
    state = {
        "w": ShardedTensor.from_rank_offsets("w", rows, (0, rank, 2)),
        "o": ShardedObject("o", {"a": rank}, (2,), (rank,)),
        "plain": 7,
    }
    multiprocessing.current_process()._config["daemon"] = False  # Megatron-core's writer starts processes of its own
    with open_device("cpu").bridge():
        save(state, folder)


def test_megatron_reads_ours(checkpoint: Path, ranks: Pool) -> None:
    """Megatron-core's own reader cuts our tensor another way than we wrote it."""
    loaded = ranks.run(load_in_megatron, 2, str(checkpoint))
    assert [row for rank in loaded for row in rank["w"]] == FULL.tolist()
    assert loaded[1]["o"] == [1, "x"]
    assert loaded[0]["iteration"] == 3


@pytest.mark.full  # its writer starts an interpreter for each rank: 10 s
def test_we_read_megatrons(tmp_path: Path, ranks: Pool) -> None:
    """We read what Megatron-core's own writer wrote, without ranks."""
    ranks.run(save_in_megatron, 2, str(tmp_path))
    reader = open_checkpoint(tmp_path)
    out = torch.zeros(4, 3)
    read_box(reader, "w", Box((1, 1), (4, 3)), out)
    assert torch.equal(out, FULL[1:5, 1:4])
    assert read_object(reader, "o/shard_1_2") == {"a": 1}


@pytest.mark.parametrize("box", [whole(SHAPE), Box((3, 1), (2, 3)), Box((5, 4), (1, 1))])
def test_boxes_are_read_across_parts(checkpoint: Path, box: Box) -> None:
    """A box is put together from all parts it meets."""
    out = torch.full(box.shape, -1.0)
    read_box(open_checkpoint(checkpoint), "w", box, out)
    assert torch.equal(out, part(box))


def test_beyond_the_tensor_nothing_is_touched(checkpoint: Path) -> None:
    """Rows that the stored tensor does not have keep their values."""
    out = torch.full((2, 5), -1.0)
    read_box(open_checkpoint(checkpoint), "w", Box((5, 0), (2, 5)), out)
    assert torch.equal(out, torch.stack([FULL[5], torch.full((5,), -1.0)]))


def test_large_boxes_are_cut(tmp_path: Path) -> None:
    """A box beyond the limit is stored as several, and reads as one."""
    written = write_items(tmp_path / "__0_0.distcp", [TensorItem("w", SHAPE, whole(SHAPE), FULL)], max_bytes=28)
    write_index(tmp_path, written)
    assert len(written) > 4
    assert max(item.box.elements for item in written) <= 7
    out = torch.zeros(SHAPE)
    read_box(open_checkpoint(tmp_path), "w", whole(SHAPE), out)
    assert torch.equal(out, FULL)


def test_an_incomplete_tensor_is_not_published(tmp_path: Path) -> None:
    """An index is refused unless every element was written exactly once."""
    written = write_items(tmp_path / "__0_0.distcp", [TensorItem("w", SHAPE, box, part(box)) for box in BOXES])
    with pytest.raises(CheckpointError, match="tensor=w: 8 of 30 elements are missing"):
        write_index(tmp_path, written[1:])
    with pytest.raises(CheckpointError, match=r"tensor=w: parts \[0:4, 0:2\] and \[0:4, 0:2\] overlap"):
        write_index(tmp_path, [*written, written[0]])
    assert not (tmp_path / INDEX).exists()


class Evil:
    """A pickle that runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def test_foreign_code_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An index or an object that names code is refused by name, and the code does not run."""
    monkeypatch.chdir(tmp_path)
    (checkpoint / INDEX).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"\.metadata: asks for posix.system, which no index needs: refused"):
        read_index(checkpoint)
    assert not (tmp_path / "evil").exists()


class Attribute:
    """A pickle that asks for any attribute of a class that an index may name."""

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, (Metadata, "__init__")


def test_only_members_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.0 to 3.11.3 pickle an enumeration's member as a lookup, which is read; no other lookup is."""
    with monkeypatch.context() as patch:
        patch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda member, _: (getattr, (type(member), member.name)))
        write_index(tmp_path, write_items(tmp_path / "__0_0.distcp", [TensorItem("w", SHAPE, whole(SHAPE), FULL)]))
    assert b"getattr" in (tmp_path / INDEX).read_bytes()
    assert read_index(tmp_path).tensors["w"].dtype == torch.float32
    (tmp_path / INDEX).write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(CheckpointError, match=r"asks for attribute __init__ of .*Metadata.*, which no index needs"):
        read_index(tmp_path)


def test_foreign_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for objects beside the index."""
    monkeypatch.chdir(tmp_path)
    write_index(tmp_path, write_items(tmp_path / "__0_0.distcp", [ObjectItem("o", Evil())]))
    with pytest.raises(CheckpointError, match=r"__0_0.distcp: o is damaged or holds code"):
        read_object(open_checkpoint(tmp_path), "o")
    assert not (tmp_path / "evil").exists()


def test_damage_is_named(checkpoint: Path) -> None:
    """A file cut short, a flipped bit, a missing file and a broken index are each named with what was expected."""
    file = checkpoint / "__1_0.distcp"
    good = file.read_bytes()
    out = torch.zeros(SHAPE)

    file.write_bytes(good[:100])
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: is cut short: it holds 100 bytes, expected at least \d+"):
        read_box(open_checkpoint(checkpoint), "w", whole(SHAPE), out)
    at = good.index(part(BOXES[2]).numpy().tobytes())
    file.write_bytes(good[:at] + b"\xff" + good[at + 1 :])
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: w\[4:6, 0:5\]: .* is damaged: its CRC-32 is"):
        read_box(open_checkpoint(checkpoint), "w", whole(SHAPE), out)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cut short: it holds 0 bytes"):
        read_box(open_checkpoint(checkpoint), "w", whole(SHAPE), out)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: is missing; .metadata names it"):
        read_box(open_checkpoint(checkpoint), "w", whole(SHAPE), out)

    (checkpoint / INDEX).write_bytes((checkpoint / INDEX).read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"\.metadata: is damaged"):
        read_index(checkpoint)
    (checkpoint / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"has no .metadata; name the folder of one saved step"):
        read_index(checkpoint)


def test_an_index_may_not_point_outside(checkpoint: Path) -> None:
    """A file name with a folder in it is refused."""
    raw = (checkpoint / INDEX).read_bytes()
    (checkpoint / INDEX).write_bytes(raw.replace(b"__1_0.distcp", b"../../../etc"))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        read_index(checkpoint)


def test_the_common_part_is_plain(checkpoint: Path) -> None:
    """The common part is read back as it was, and refused when it holds code."""
    assert read_common(checkpoint) == {"iteration": 3}
    torch.save({"iteration": Evil()}, checkpoint / COMMON)
    with pytest.raises(CheckpointError, match=r"common.pt: is missing, damaged or holds code"):
        read_common(checkpoint)
