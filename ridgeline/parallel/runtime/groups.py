"""Megatron-core's process groups and random streams, as long as a context lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
from torch import distributed

from ridgeline.core.errors import LoweringError
from ridgeline.core.layout import Layout


def _parts_of_cp(layout: Layout) -> list[int] | None:
    """Ranks side by side that exchange heads, and how many such groups pass keys and values on."""
    return [layout.ulysses, layout.cp // layout.ulysses] if layout.cp_algorithm == "hybrid" else None


@contextmanager
def process_groups(layout: Layout, *, world_size: int, seed: int) -> Iterator[None]:
    """Create every group of the mesh among the ranks of torch.distributed, and forget them on leaving.

    torch.distributed itself is the caller's: it must be initialised, and stays so.

    Args:
        layout: Degrees and order of the axes.
        world_size: That the plan was made for.
        seed: Of dropout and whatever else draws during training.

    Raises:
        LoweringError: Another number of ranks was started.
    """
    started = distributed.get_world_size()
    if started != world_size:
        raise LoweringError(
            f"world_size={started}: the plan is for {world_size} ranks; start that many or change the cluster"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.chunks if layout.chunks > 1 else None,
        context_parallel_size=layout.cp,
        hierarchical_context_parallel_sizes=_parts_of_cp(layout),
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        order=layout.order,
        # In a V one rank has both ends of the model, and shares their embedding with no other.
        get_embedding_ranks=(lambda ranks, *_: ranks[:1]) if layout.placement == "v" else None,
        create_gloo_process_groups=False,
    )
    try:
        model_parallel_cuda_manual_seed(seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        # Megatron-core sums up routers' losses by layer for the whole process, with the groups they are reduced over.
        get_moe_layer_wise_logging_tracker().clear()
