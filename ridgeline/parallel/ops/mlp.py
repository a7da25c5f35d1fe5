"""A dense feed-forward, and the shared experts of a sparse one."""

from ridgeline.core.model import Activation, Mlp, Moe, is_gated
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, dropped, row_comms, whole
from ridgeline.parallel.ops.words import Op, Saved


def mlp_ops(mlp: Mlp, sizes: Sizes) -> tuple[Op, ...]:
    """From the layer's normed input to its output before the residual.

    An activation without a gate saves its input too, but for a ReLU, whose output tells its slope.
    """
    tokens, width, ffn = sizes.tokens, sizes.width, mlp.ffn_hidden // sizes.tp
    stream = sizes.own_tokens * sizes.hidden * width
    activation = tokens * ffn * width
    weight = sizes.hidden * ffn * width
    rows = 2 if is_gated(mlp.activation) else 1
    before = () if mlp.activation == "relu" else (Saved("gate_up", rows * activation, "mlp"),)
    passes = activation_passes(mlp.activation, mlp.limit)
    if "activation" in sizes.plain and rows == 2:
        passes = 5  # the gate's activation is written, and read for the product
        # The gate on its own and its activation; tanh's approximation of GELU, written out, two more on its way.
        copies = 4 if mlp.activation == "geglu_tanh" else 2
        before = (*before, Saved("gate", copies * activation, "mlp activation"))
    return (
        Op(
            "linear_fc1",
            "mlp",
            gemms=((tokens, sizes.hidden, rows * ffn),),
            saved=(Saved("mlp_input", stream, "layernorm", for_weight=True),),
            comms=tuple(column_comms(sizes)),
            backward_work_bytes=rows * weight + whole(sizes) + stream,
        ),
        Op(
            mlp.activation,
            "mlp",
            moved_bytes=passes * activation,
            saved=before,
            forward_work_bytes=bounded_copies(mlp.activation, mlp.limit) * activation,
            backward_work_bytes=(rows + 1 + bounded_copies(mlp.activation, mlp.limit)) * activation,
        ),
        Op(
            "linear_fc2",
            "mlp",
            gemms=((tokens, ffn, sizes.hidden),),
            saved=(Saved("activation", activation, "mlp activation", for_weight=True), *dropped(sizes)),
            comms=tuple(row_comms(sizes)),
            forward_work_bytes=whole(sizes) + stream,
            backward_work_bytes=whole(sizes) + activation + weight,
        ),
    )


def bounded_copies(activation: Activation, limit: float | None) -> int:
    """Of gate and of up while a kernel runs that takes them bounded: each by itself, then both as one."""
    return 4 if activation == "bounded_swiglu" and limit is not None else 0


def activation_passes(activation: Activation, limit: float | None) -> int:
    """How often an activation reads or writes its width: gate and up, what it makes of them, each copy twice."""
    return (3 if is_gated(activation) else 2) + 2 * bounded_copies(activation, limit)


def shared_expert_ops(moe: Moe, sizes: Sizes) -> tuple[Op, ...]:
    """The experts that every token meets: an MLP whose input the router keeps already."""
    if moe.shared_ffn is None:
        return ()
    own, width = sizes.own_tokens, sizes.width
    ops = []
    bounded = moe.shared_limit is not None
    activation = moe.activation if bounded or moe.activation != "bounded_swiglu" else "swiglu"
    for op in mlp_ops(Mlp(ffn_hidden=moe.shared_ffn, activation=activation, limit=moe.shared_limit), sizes):
        saved = tuple(
            one._replace(name=f"shared_{one.name}", dropped_by=one.dropped_by.replace("mlp", "moe"))
            for one in op.saved
            if one.name != "mlp_input"
        )
        ops.append(op._replace(name=f"shared_{op.name}", part="moe", saved=saved))
    if moe.shared_gate:
        output = own * sizes.hidden * width
        saved = (Saved("shared_output", output, "moe"), Saved("shared_gate", own * width, "moe"))
        ops.append(Op("shared_gate", "moe", gemms=((own, sizes.hidden, 1),), moved_bytes=2 * output, saved=saved))
    return tuple(ops)
