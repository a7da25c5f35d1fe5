"""A dense feed-forward."""

from ridgeline.core.model import Mlp
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms, dropped, row_comms, whole
from ridgeline.parallel.ops.words import Op, Saved


def mlp_ops(mlp: Mlp, sizes: Sizes) -> tuple[Op, ...]:
    tokens, width, ffn = sizes.tokens, sizes.width, mlp.ffn_hidden // sizes.tp
    stream = sizes.own_tokens * sizes.hidden * width
    activation = tokens * ffn * width
    weight = sizes.hidden * ffn * width
    return (
        Op(
            "linear_fc1",
            "mlp",
            gemms=((tokens, sizes.hidden, 2 * ffn),),
            saved=(Saved("mlp_input", stream, "layernorm", for_weight=True),),
            comms=tuple(column_comms(sizes)),
            backward_work_bytes=2 * weight + whole(sizes) + stream,
        ),
        Op(
            "swiglu",
            "mlp",
            moved_bytes=3 * activation,
            saved=(Saved("gate_up", 2 * activation, "mlp"),),
            backward_work_bytes=3 * activation,
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
