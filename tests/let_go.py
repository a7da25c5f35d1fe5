"""What Megatron-core's own models leave behind a job: groups that something holds, whose threads poll for ever."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def megatron_models() -> Iterator[None]:
    """A job that builds models of Megatron-core alone; on leaving, nothing of it holds its process groups.

    A chunk stands in a cycle through autograd (`ridgeline.models.runtime.build.release`), the rotary positions in a
    cache whose keys are modules, and the groups that routers' losses are reduced over in a log of the whole process.
    """
    try:
        yield
    finally:
        from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
        from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

        _release_chunks()
        RotaryEmbedding.forward.cache_clear()
        get_moe_layer_wise_logging_tracker().clear()


def _release_chunks() -> None:
    from megatron.core.distributed import DistributedDataParallel

    from ridgeline.models.runtime.build import release

    for held in gc.get_objects():
        if issubclass(type(held), DistributedDataParallel):
            release(held)
