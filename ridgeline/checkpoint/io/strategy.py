"""How Megatron-core's ``dist_checkpointing`` writes and reads through us: its format without its processes and pickles.

Its own writer starts two processes a rank and one interpreter more, and cannot tell a full disk from a dead worker.
Its own reader runs whatever the index pickles. Ours write one file a rank from a thread, and read boxes into tensors
that are in place already.
"""

from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.base import AsyncSaveShardedStrategy, LoadShardedStrategy
from torch import distributed

from ridgeline.checkpoint.boxes import Box
from ridgeline.checkpoint.io.torch_dist.reader import Reader, read_box, read_object
from ridgeline.checkpoint.io.torch_dist.writer import ObjectItem, TensorItem, write_items


class BoxWriter(AsyncSaveShardedStrategy):
    """Each rank writes its boxes into one file; the request's ``async_fn`` gives what it wrote, for ``write_index``."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    @property
    def can_handle_sharded_objects(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  upstream says False
        return True

    def async_save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> AsyncRequest:
        items = [_item(shard) for shard in nested_values(sharded_state_dict) if is_main_replica(shard.replica_id)]
        path = Path(checkpoint_dir) / f"__{distributed.get_rank()}_0.distcp"
        return AsyncRequest(write_items, (path, items), [])


class BoxReader(LoadShardedStrategy):
    """Reads each box of an open checkpoint into the data of its shard."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def can_handle_sharded_objects(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  upstream says False
        return True

    def load(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> dict[str, Any]:
        return dict_list_map_outplace(self._read, sharded_state_dict)  # pyright: ignore[reportReturnType]  a dict stays one

    def load_tensors_metadata(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        raise NotImplementedError("the index is read by torch_dist.read_index")

    def check_backend_compatibility(self, loaded_backend: str) -> None:
        assert loaded_backend == "torch_dist", loaded_backend

    def check_version_compatibility(self, loaded_version: int) -> None:
        assert loaded_version == 1, loaded_version

    def _read(self, shard: ShardedTensor | ShardedObject) -> Any:
        if isinstance(shard, ShardedObject):
            return read_object(self.reader, shard.unique_key)
        assert shard.data is not None
        read_box(self.reader, shard.key, Box(shard.global_offset, shard.local_shape), shard.data)
        return shard.data


def tensor_shard(item: TensorItem) -> ShardedTensor:
    """A box of a tensor in Megatron-core's words."""
    return ShardedTensor(
        key=item.key,
        data=item.data,
        dtype=item.data.dtype,
        local_shape=item.box.shape,
        global_shape=item.shape,
        global_offset=item.box.offset,
        axis_fragmentations=None,
    )


def _item(shard: ShardedTensor | ShardedObject) -> TensorItem | ObjectItem:
    if isinstance(shard, ShardedObject):
        return ObjectItem(shard.unique_key, shard.data)
    assert shard.data is not None
    prepended = (1,) * shard.prepend_axis_num
    box = Box(shard.global_offset, (*prepended, *shard.local_shape))
    return TensorItem(shard.key, shard.global_shape, box, shard.data.view(box.shape))
