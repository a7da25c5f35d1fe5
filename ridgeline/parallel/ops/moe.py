"""Routed experts: the router, the tokens' way to the experts and back, the experts."""

from ridgeline.core.model import Moe
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.words import Comm, Op, Saved


def moe_ops(moe: Moe, sizes: Sizes) -> tuple[Op, ...]:
    tokens, width, ffn = sizes.own_tokens, sizes.width, moe.ffn_hidden // sizes.etp
    stream = tokens * sizes.hidden * width
    scores = tokens * moe.experts * 4  # the router works in fp32
    local_experts = moe.experts // sizes.ep
    balance = sizes.moe_balance if sizes.ep > 1 else 1.0
    rows = int(tokens * moe.topk * sizes.etp * balance)  # of this rank's experts; in balance, their equal share
    dispatched = rows * sizes.hidden * width
    activation = rows * ffn * width
    weight = sizes.hidden * ffn * width
    aux = [Comm("F", "all_reduce", "tp-cp", moe.experts * 8)] if moe.aux_loss and sizes.tp * sizes.cp > 1 else []
    dispatch, combine = _dispatcher_comms(moe, sizes)
    each = -(-rows // local_experts)
    return (
        Op(
            "router",
            "moe",
            gemms=((tokens, sizes.hidden, moe.experts),),
            moved_bytes=6 * scores,
            saved=(
                Saved("mlp_input", stream, "layernorm", for_weight=True),
                # logits, and the scattered weights; the auxiliary loss keeps a softmax of all scores
                Saved("router_scores", (3 if moe.aux_loss else 2) * scores, "moe"),
                Saved("routing_map", tokens * moe.experts + tokens * moe.topk * 16, "moe"),
            ),
            comms=tuple(aux),
            forward_work_bytes=2 * scores,
            backward_work_bytes=2 * scores,
        ),
        Op(
            "dispatch",
            "moe",
            moved_bytes=4 * dispatched,
            scattered=True,
            comms=dispatch,
            forward_work_bytes=2 * dispatched,
            backward_work_bytes=2 * dispatched,
        ),
        Op(
            "expert_fc1",
            "moe",
            gemms=((each, sizes.hidden, 2 * ffn),),
            gemm_repeats=local_experts,
            saved=(Saved("expert_input", dispatched, "moe dispatch", for_weight=True),),
            backward_work_bytes=2 * dispatched + 2 * weight,
        ),
        Op(
            "expert_swiglu",
            "moe",
            moved_bytes=3 * activation + 2 * activation,
            # SwiGLU's input and, since the tokens' weights multiply it, its output; then the product
            saved=(
                Saved("expert_gate_up", 2 * activation, "moe"),
                Saved("expert_activation", activation, "moe activation"),
            ),
            backward_work_bytes=(3 * activation + rows * ffn * 4) // local_experts,
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
            backward_work_bytes=2 * dispatched + weight,
        ),
        Op(
            "combine",
            "moe",
            moved_bytes=4 * dispatched,
            scattered=True,
            comms=combine,
            forward_work_bytes=2 * dispatched,
            backward_work_bytes=2 * dispatched,
        ),
    )


def _dispatcher_comms(moe: Moe, sizes: Sizes) -> tuple[tuple[Comm, ...], tuple[Comm, ...]]:
    """Collectives before and after the experts."""
    group = sizes.etp * sizes.ep
    if group == 1:
        return (), ()
    tokens, hidden = sizes.own_tokens, sizes.hidden * sizes.width
    if sizes.dispatcher == "allgather":
        every = tokens * group
        states, weights = every * hidden, every * moe.experts * 4
        combined = every * sizes.hidden * 4  # summed in the fp32 of the tokens' weights
        return (
            Comm("F", "all_gather", "etp-ep", every * moe.experts),
            Comm("F", "all_gather", "etp-ep", weights),
            Comm("F", "all_gather", "etp-ep", states),
            Comm("B", "reduce_scatter", "etp-ep", weights),
            Comm("B", "reduce_scatter", "etp-ep", states),
        ), (
            Comm("F", "reduce_scatter", "etp-ep", combined),
            Comm("B", "all_gather", "etp-ep", combined),
        )
    rows = tokens * moe.topk
    dispatch = [Comm("F", "all_gather", "etp-ep", group * moe.experts * 8)]
    combine = []
    if sizes.ep > 1:
        for phase in ("F", "B"):
            dispatch += [Comm(phase, "all_to_all", "ep", rows * hidden), Comm(phase, "all_to_all", "ep", rows * 4)]
            combine.append(Comm(phase, "all_to_all", "ep", rows * hidden))
    if sizes.etp > 1:
        states, weights = rows * sizes.etp * hidden, rows * sizes.etp * 4
        dispatch += [Comm("F", "all_gather", "etp", states), Comm("F", "all_gather", "etp", weights)]
        dispatch += [Comm("B", "reduce_scatter", "etp", states), Comm("B", "reduce_scatter", "etp", weights)]
        combined = rows * sizes.etp * sizes.hidden * 4  # summed in the fp32 of the tokens' weights
        combine += [Comm("F", "reduce_scatter", "etp", combined), Comm("B", "all_gather", "etp", combined)]
    return tuple(dispatch), tuple(combine)
