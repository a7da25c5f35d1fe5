"""What low-rank adapters change of a rank's work and memory: weights beside which they train are frozen.

The parameters are rows of the table like all others (``ridgeline.core.params.adapters``). A linear that is frozen has
no weight gradient, and so does not gather its input again for one. Between an adapter's two matrices ranks exchange
what has ``rank`` features, as their linear exchanges its own input or output.

Source:
    arXiv 2106.09685; peft's LoraParallelLinear over Megatron-core, as MindSpeed-LLM's tasks/posttrain/lora uses it;
    megatron-core 0.16.1, tensor_parallel/layers.py, ``linear_with_frozen_weight``.
    NF4, arXiv 2305.14314: 4 bits a weight, of each 64 weights a scale in 8 bits, of each 256 scales one in fp32.
"""

from collections.abc import Iterator

from ridgeline.core.job import Lora
from ridgeline.core.params import Param, target_of
from ridgeline.core.params.adapters import SPLITS_INPUTS
from ridgeline.parallel.ops import Comm, Op, Sizes

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
NF4_ROLES = ("qkv", "gate_up", "up", *SPLITS_INPUTS)
"""Roles of the linears that QLoRA stores in 4 bits."""

COLUMN, ROW = ("linear_qkv", "linear_fc1"), ("linear_proj", "linear_fc2")
"""Targets that split their outputs over tp, and those that split their inputs."""


def frozen_bytes(param: Param, elements: int, adapter: Lora, *, width: int) -> int:
    """Bytes of so many elements of a frozen weight."""
    return int(elements * NF4_BITS / 8) if adapter.base == "nf4" and param.role in NF4_ROLES else elements * width


def target_of_op(name: str) -> str:
    """The target that the linear of an operation is; shared and routed experts have the same two."""
    return target_of(name.removeprefix("shared_").replace("expert_", "linear_"))


def adapted(op: Op, adapter: Lora, sizes: Sizes) -> Op:
    """An operation of a model whose weights are frozen, with the adapter beside it if it is a target."""
    if op.name == "embedding":
        return op._replace(comms=tuple(comm for comm in op.comms if comm.phase == "F"))
    if not op.gemms:
        return op
    comms = [
        comm._replace(beside=False)
        for comm in op.comms
        if not (comm.phase == "B" and comm.kind == "all_gather" and comm.beside)
    ]
    target = target_of_op(op.name)
    if target in adapter.targets and not op.name.startswith("expert_"):
        comms += _between(target, sizes.tokens * adapter.rank * sizes.width, sizes)
    return op._replace(comms=tuple(comms))


def _between(target: str, size_bytes: int, sizes: Sizes) -> Iterator[Comm]:
    """What tp ranks exchange between an adapter's two matrices."""
    if sizes.tp == 1:
        return
    if target in COLUMN:
        if sizes.sp:
            yield Comm("F", "all_gather", "tp", size_bytes)
        yield Comm("B", "reduce_scatter" if sizes.sp else "all_reduce", "tp", size_bytes)
    else:
        yield Comm("F", "reduce_scatter" if sizes.sp else "all_reduce", "tp", size_bytes)
        if sizes.sp:
            yield Comm("B", "all_gather", "tp", size_bytes)
