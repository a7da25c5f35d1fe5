"""One multi-token-prediction layer up to its own head: the next token's embedding joins the stream, then a block.

Source:
    megatron-core 0.16.1, transformer/multi_token_prediction.py (``_concat_embeddings``: the projection is
    column-parallel, and its output gathered whole before sequence parallelism cuts it again).
"""

from collections.abc import Iterator

from ridgeline.core.model import Block
from ridgeline.parallel.ops.block import block_ops
from ridgeline.parallel.ops.ends import embedding_ops
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, norm
from ridgeline.parallel.ops.words import Comm, Op, Saved


def mtp_ops(block: Block, sizes: Sizes) -> tuple[Op, ...]:
    """The operations of one layer whose block is ``block``; ``head_ops`` follow."""
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    columns = sizes.hidden // sizes.tp
    projection = Op(
        "eh_proj",
        gemms=((sizes.tokens, 2 * sizes.hidden, columns),),
        saved=(Saved("eh_input", 2 * stream, for_weight=True),),
        comms=(*column_comms(sizes, features=2 * sizes.hidden), *_gather(sizes)),
        forward_work_bytes=2 * sizes.tokens * sizes.hidden * sizes.width,
        backward_work_bytes=2 * stream + 2 * sizes.hidden * columns * sizes.width,
    )
    norms = (norm("enorm", "next_embedding", sizes), norm("hnorm", "x_main", sizes))
    return (*embedding_ops(sizes), *norms, projection, *block_ops(block, sizes))


def _gather(sizes: Sizes) -> Iterator[Comm]:
    if sizes.tp > 1:
        whole = sizes.tokens * sizes.hidden * sizes.width
        yield Comm("F", "all_gather", "tp", whole)
        if sizes.sp:
            yield Comm("B", "all_gather", "tp", whole)
