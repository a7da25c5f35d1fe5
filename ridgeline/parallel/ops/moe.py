"""Routed experts: the router, the experts, and those that every token meets; tokens' ways are in ``dispatch.py``."""

from collections.abc import Iterator

from ridgeline.core.model import Moe, is_gated
from ridgeline.parallel.ops.dispatch import dispatcher_comms, place_ops
from ridgeline.parallel.ops.mlp import activation_passes, bounded_copies, shared_expert_ops
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.words import Comm, Op, Saved


def moe_ops(moe: Moe, sizes: Sizes) -> tuple[Op, ...]:
    """From the layer's normed input to its output before the residual.

    Shared experts come last, or beside the tokens' ways: up to their activation on the way there, the rest on the way
    back.
    """
    tokens, width, ffn = sizes.own_tokens, sizes.width, moe.ffn_hidden // sizes.etp
    stream = tokens * sizes.hidden * width
    choices = moe.experts + moe.zero_experts
    scores = tokens * choices * 4  # the router works in fp32
    columns = 2 if is_gated(moe.activation) else 1
    local_experts = moe.experts // sizes.ep
    rows = _rows(moe, sizes)
    dispatched = rows * sizes.hidden * width
    group = sizes.etp * sizes.ep if sizes.dispatcher == "allgather" else 1
    gathered = tokens * group * sizes.hidden * width if group > 1 else 0  # tokens of all ranks that share the experts
    activation = rows * ffn * width
    weight = sizes.hidden * ffn * width
    dispatch, combine = dispatcher_comms(moe, sizes)
    shared = shared_expert_ops(moe, sizes)
    beside = _while_under_way(shared, 2 * dispatched) if "shared_experts" in sizes.moe_overlap else ()
    each = -(-rows // local_experts)
    gradients = weight * (1 if sizes.sums_experts or moe.bias else local_experts)
    return (
        Op(
            "router",
            "moe",
            gemms=((tokens, sizes.hidden, choices),),
            moved_bytes=6 * scores,
            saved=(
                Saved("mlp_input", stream, "layernorm", for_weight=True),
                *((Saved("input_jitter", stream, "moe"),) if moe.input_jitter else ()),
                Saved("router_scores", _score_copies(moe) * scores, "moe"),
                Saved("routing_map", tokens * choices + tokens * moe.topk * 16, "moe"),
            ),
            comms=tuple(_loss_comms(moe, sizes)),
            forward_work_bytes=2 * scores,
            backward_work_bytes=2 * scores,
        ),
        Op(
            "dispatch",
            "moe",
            moved_bytes=4 * dispatched,
            scattered=True,
            comms=dispatch,
            forward_work_bytes=2 * dispatched + gathered,
            backward_work_bytes=2 * dispatched + gathered,
        ),
        *place_ops(moe, sizes, rows=rows),
        *beside[:2],
        Op(
            "expert_fc1",
            "moe",
            gemms=((each, sizes.hidden, columns * ffn),),
            gemm_repeats=local_experts,
            saved=(Saved("expert_input", dispatched, "moe dispatch", for_weight=True),),
            backward_work_bytes=2 * dispatched + columns * gradients,
        ),
        Op(
            f"expert_{moe.activation}",
            "moe",
            moved_bytes=(activation_passes(moe.activation, moe.limit) + 2) * activation,
            # the activation's input and, since the tokens' weights multiply it, its output; then the product
            saved=(
                Saved("expert_gate_up", columns * activation, "moe"),
                Saved("expert_activation", activation, "moe activation"),
            ),
            forward_work_bytes=bounded_copies(moe.activation, moe.limit) * activation,
            backward_work_bytes=((columns + 1) * activation + rows * ffn * 4) // local_experts,
        ),
        Op(
            "expert_fc2",
            "moe",
            gemms=((each, ffn, sizes.hidden),),
            gemm_repeats=local_experts,
            saved=(
                Saved("expert_scaled", activation, "moe activation", for_weight=True),
                Saved("expert_weights", rows * 4, "moe"),
            ),
            forward_work_bytes=2 * dispatched,
            backward_work_bytes=2 * dispatched + gradients,
        ),
        Op(
            "combine",
            "moe",
            moved_bytes=4 * dispatched,
            scattered=True,
            comms=combine,
            forward_work_bytes=2 * dispatched + 4 // width * gathered,  # summed in the fp32 of the tokens' weights
            backward_work_bytes=2 * dispatched + 4 // width * gathered,
        ),
        *(beside[2:] or shared),
    )


def _while_under_way(ops: tuple[Op, ...], travelling: int) -> tuple[Op, ...]:
    """Operations beside which as many bytes are sent, or come."""
    return tuple(
        op._replace(
            forward_work_bytes=op.forward_work_bytes + travelling,
            backward_work_bytes=op.backward_work_bytes + travelling,
        )
        for op in ops
    )


def _rows(moe: Moe, sizes: Sizes) -> int:
    """Tokens that this rank's experts work on; in balance, their equal share."""
    balance = sizes.moe_balance if sizes.ep > 1 else 1.0
    if moe.capacity_factor is not None:
        balance = moe.capacity_factor if moe.pad_to_capacity else min(balance, moe.capacity_factor)
    share = moe.experts / (moe.experts + moe.zero_experts)
    return int(sizes.own_tokens * moe.topk * share * sizes.etp * balance)


def _score_copies(moe: Moe) -> int:
    """Tensors of a score for every choice that the router keeps: logits or scores, and the scattered weights.

    The auxiliary loss keeps a softmax of all scores; of sigmoids, them and what they are divided into. SparseMixer
    keeps a softmax for each of its two choices.
    """
    return (3 if moe.score == "sparsemixer" else 2) + (0 if not moe.aux_loss else 2 if moe.score == "sigmoid" else 1)


def _loss_comms(moe: Moe, sizes: Sizes) -> Iterator[Comm]:
    """What balance losses count over the ranks of a microbatch: choices of each expert, and of each group of them."""
    if sizes.tp * sizes.cp > 1 and (moe.aux_loss or moe.device_aux_loss or moe.comm_aux_loss):
        windows = sizes.samples if moe.aux_per_sequence else 1
        counts = windows * (moe.experts + moe.zero_experts + moe.groups)
        yield Comm("F", "all_reduce", "tp-cp", counts * 4, in_graph=True)
