"""The embedding, and the head with its loss."""

from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, norm, row_comms, whole
from ridgeline.parallel.ops.words import Comm, Op, Saved


def embedding_ops(sizes: Sizes) -> tuple[Op, ...]:
    """The embedding's lookup."""
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    weight_grad = sizes.vocab // sizes.tp * sizes.hidden * sizes.width
    return (
        Op(
            "embedding",
            moved_bytes=2 * sizes.tokens * sizes.hidden * sizes.width,
            saved=(Saved("tokens", sizes.tokens * 8),),
            comms=tuple(row_comms(sizes)),
            forward_work_bytes=whole(sizes) + stream,
            backward_work_bytes=weight_grad + whole(sizes),
        ),
    )


def head_ops(sizes: Sizes) -> tuple[Op, ...]:
    """The final norm, the head and the loss."""
    local_vocab = sizes.vocab // sizes.tp
    elements = sizes.tokens * local_vocab
    copies = elements * sizes.width if sizes.width < 4 else 0  # fp32 logits become their own softmax and gradient
    comms = [Comm("F", "all_reduce", "tp", sizes.tokens * 4, repeats=3)] if sizes.tp > 1 else []
    return (
        norm("final_layernorm", "x_final", sizes),
        Op(
            "head",
            gemms=((sizes.tokens, sizes.hidden, local_vocab),),
            saved=(Saved("head_input", sizes.own_tokens * sizes.hidden * sizes.width, for_weight=True),),
            comms=tuple(column_comms(sizes)),
            backward_work_bytes=local_vocab * sizes.hidden * sizes.width
            + 2 * sizes.tokens * sizes.hidden * sizes.width,
        ),
        Op(
            "loss",
            moved_bytes=elements * (2 * sizes.width + 5 * 4),
            saved=(Saved("softmax", elements * 4), Saved("labels", sizes.tokens * 24)),
            comms=tuple(comms),
            forward_work_bytes=copies,
            backward_work_bytes=copies,
        ),
    )
