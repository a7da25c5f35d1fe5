"""What of its tokens' ways to experts and back a layer hides behind its own compute, where the job lets it.

    there   beside finding places, and shared experts up to their activation; their gradients' way back beside the same
            backwards and the products of the experts' weight gradients
    back    beside the rest of the shared experts, forward and backward

Source:
    NVIDIA/Megatron-LM core_v0.16.1, transformer/moe/shared_experts.py; Ascend/MindSpeed 2.1.0,
    core/transformer/moe/moe_feature/overlap.
"""

from collections.abc import Sequence

from ridgeline.parallel.costs import Costs, Parts, op_parts
from ridgeline.parallel.links import collective_us
from ridgeline.parallel.ops import Op
from ridgeline.parallel.ops.dispatch import travels


def hidden_us(ops: Sequence[Op], costs: Costs) -> tuple[float, float]:
    """Of one layer's forward, and of its backward."""
    asked = costs.job.comm.moe_overlap
    if not asked:
        return 0.0, 0.0
    named = {op.name.removeprefix("shortcut_"): op for op in ops}
    shared = [op for name, op in named.items() if name.startswith("shared_")] if "shared_experts" in asked else []
    places = [named["places"]] if "permutation" in asked and "places" in named else []
    products = [named["expert_fc1"], named["expert_fc2"]] if "weight_gradients" in asked and "dispatch" in named else []
    hidden = [0.0, 0.0]
    for way, beside in (("dispatch", [*places, *shared[:2]]), ("combine", shared[2:])):
        if way not in named:
            continue
        for at, phase in enumerate("FB"):
            compute = sum(_compute_us(op_parts(op, costs)[at]) for op in beside)
            if way == "dispatch" and phase == "B":
                compute += sum(op_parts(op, costs)[1].weight for op in products)
            hidden[at] += costs.job.cluster.chip.efficiency.overlap * min(
                _under_way_us(named[way], phase, costs), compute
            )
    return hidden[0], hidden[1]


def _compute_us(parts: Parts) -> float:
    return parts.gemm + parts.weight + parts.elementwise


def _under_way_us(op: Op, phase: str, costs: Costs) -> float:
    return sum(
        collective_us(comm.kind, comm.size_bytes, costs.spread(comm.axes), costs.job.cluster) * comm.repeats
        for comm in op.comms
        if comm.phase == phase and travels(comm, costs.job.comm.moe_dispatcher)
    )
