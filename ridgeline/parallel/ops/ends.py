"""The embedding, and the head with its loss."""

from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, dropped, norm, row_comms, whole
from ridgeline.parallel.ops.words import Comm, Op, Saved


def embedding_ops(sizes: Sizes) -> tuple[Op, ...]:
    """The embedding's lookup."""
    stream = sizes.own_tokens * sizes.hidden * sizes.width
    weight_grad = sizes.vocab // sizes.tp * sizes.hidden * sizes.width
    return (
        Op(
            "embedding",
            moved_bytes=2 * sizes.tokens * sizes.hidden * sizes.width,
            saved=(Saved("tokens", sizes.tokens * 8), *dropped(sizes)),
            comms=tuple(row_comms(sizes)),
            forward_work_bytes=whole(sizes) + stream,
            backward_work_bytes=weight_grad + whole(sizes),
        ),
    )


def head_ops(sizes: Sizes) -> tuple[Op, ...]:
    """The final norm, the head and the loss."""
    local_vocab = sizes.vocab // sizes.tp
    weight = local_vocab * sizes.hidden * sizes.width
    # Rows at length 1 are a tensor of their own, whose gradient becomes the weight's.
    rows = (Saved("unit_rows", weight), Saved("row_lengths", local_vocab * sizes.width))
    head = Op(
        "head",
        gemms=((sizes.tokens, sizes.hidden, local_vocab),),
        moved_bytes=3 * weight if sizes.normalizes_head else 0,
        saved=(
            Saved("head_input", sizes.own_tokens * sizes.hidden * sizes.width, for_weight=True),
            *(rows if sizes.normalizes_head else ()),
        ),
        comms=tuple(column_comms(sizes)),
        backward_work_bytes=(2 if sizes.normalizes_head else 1) * weight
        + 2 * sizes.tokens * sizes.hidden * sizes.width,
    )
    loss = _preference_loss(sizes) if sizes.preference else _loss(sizes)
    return norm("final_layernorm", "x_final", sizes), head, loss


def _loss(sizes: Sizes) -> Op:
    """Cross entropy: fp32 logits become their own softmax, or a copy does, and that its own gradient.

    In chunks nothing is kept: a chunk's logits are made again for its backward.
    """
    elements = sizes.tokens * sizes.vocab // sizes.tp
    chunk = min(sizes.loss_chunk or sizes.tokens, sizes.tokens) * sizes.vocab // sizes.tp
    half = chunk * sizes.width if sizes.width < 4 else 0
    copy = chunk * 4 if sizes.copies_logits else 0
    softmax = chunk * 4 if chunk < elements else 0
    kept = () if softmax else (Saved("softmax", elements * 4),)
    if sizes.caps_logits:  # tanh keeps its output, and makes another tensor of what it scales
        kept, half = (*kept, Saved("capped_logits", elements * sizes.width)), half + chunk * sizes.width
    return Op(
        "loss",
        moved_bytes=elements * (2 * sizes.width + 5 * 4),
        saved=(*kept, Saved("labels", sizes.tokens * 24)),
        comms=_loss_comms(sizes),
        forward_work_bytes=half + copy + softmax,
        backward_work_bytes=half + softmax,
    )


def _preference_loss(sizes: Sizes) -> Op:
    """Log-probabilities of both models' answers: fp32 logits stay, those of the policy with their exponentials.

    Source:
        Ascend/MindSpeed-LLM c77308a1, tasks/posttrain/dpo and tasks/posttrain/utils.py, `vocab_parallel_log_softmax`:
        differences, exponentials and log-probabilities are tensors of their own.
    """
    logits = sizes.tokens * (sizes.vocab // sizes.tp) * 4
    models = 1 if sizes.preference == "simpo" else 2
    return Op(
        "loss",
        moved_bytes=8 * models * logits,
        saved=(Saved("logits", models * logits), Saved("exponentials", logits), Saved("labels", sizes.tokens * 24)),
        comms=_loss_comms(sizes),
        forward_work_bytes=(3 if models == 2 else 2) * logits,
        backward_work_bytes=2 * logits,
    )


def _loss_comms(sizes: Sizes) -> tuple[Comm, ...]:
    return (Comm("F", "all_reduce", "tp", sizes.tokens * 4, repeats=3),) if sizes.tp > 1 else ()
