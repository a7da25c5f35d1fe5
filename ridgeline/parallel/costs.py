"""What an operation takes on one rank, forward and backward: each of its parts by a roofline with an efficiency.

    product     the longer of its FLOPs at the cube and its bytes at the HBM; tiles that do not fill the cores, or the
                matrix, are paid whole, and short sums leave the cube waiting
    attention   the longer of its two products at the cube and its scores at the vector unit
    the rest    bytes at the HBM
    collective  by its links, less what is hidden beside compute

A backward has two products for each of the forward: the input's gradient and the weight's. Attention's has five for two
(arXiv 2205.14135), and twice the passes over the scores. All else takes twice its forward.

Source:
    Tiles: one core's accumulator (L0C, 128 KiB) holds 128 x 256 sums in fp32: CANN runtime, platform_config.
"""

from math import ceil
from typing import NamedTuple

from ridgeline.core.cluster import Chip
from ridgeline.core.job import Job
from ridgeline.parallel.adapters import target_of_op
from ridgeline.parallel.links import Spread, collective_us, spread_of
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.ops import Comm, Op

TILE_ROWS, TILE_COLUMNS = 128, 256
ACCUMULATE_BYTES = 10  # a weight and microbatch: its half-precision gradient is read, the fp32 sum read and written


class Parts(NamedTuple):
    """Microseconds by what they are spent on.

    ``weight`` are products of weight gradients, ``reference`` the forward of a reference model, ``swap`` what is waited
    for of tensors kept on the host.
    """

    gemm: float = 0.0
    weight: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    accumulate: float = 0.0
    recompute: float = 0.0
    reference: float = 0.0
    swap: float = 0.0
    tp: float = 0.0
    cp: float = 0.0
    ep: float = 0.0

    def plus(self, other: "Parts", times: float = 1.0) -> "Parts":
        """The sum of both, the other one ``times`` times."""
        return Parts._make([mine + theirs * times for mine, theirs in zip(self, other, strict=True)])


class Costs(NamedTuple):
    """What the cost of an operation depends on besides the operation."""

    job: Job
    mesh: Mesh
    width: int
    spreads: dict[str, Spread]

    def spread(self, axes: str) -> Spread:
        """Where the groups over some axes lie, looked up once."""
        if axes not in self.spreads:
            self.spreads[axes] = spread_of(axes, self.mesh, self.job.cluster)
        return self.spreads[axes]


def costs_of(job: Job, mesh: Mesh) -> Costs:
    """The costs of a job's operations."""
    return Costs(job, mesh, 4 if job.precision.params == "fp32" else 2, {})


def op_parts(op: Op, costs: Costs) -> tuple[Parts, Parts]:
    """The forward and the backward of an operation."""
    chip = costs.job.cluster.chip
    launch = chip.efficiency.launch_us
    products = _products(op, costs)
    there, back = attention_us(op, chip, costs.width) if op.attention_flops else (0.0, 0.0)
    moved = traffic_us(op.moved_bytes, chip, scattered=op.scattered) + launch if op.moved_bytes else 0.0
    forward = Parts(gemm=products.forward, attention=there, elementwise=moved)
    share = op.backward_share
    backward = Parts(
        gemm=share * products.inputs,
        weight=share * products.weights,
        attention=share * back,
        elementwise=share * 2 * moved,
    )
    return _with_comms(forward, op, "F", costs), _with_comms(backward, op, "B", costs)


class _Products(NamedTuple):
    """Time of an operation's products: forward, of its inputs' gradients, of its weights' gradients."""

    forward: float
    inputs: float
    weights: float


def _products(op: Op, costs: Costs) -> _Products:
    """Frozen weights have no gradients; the two low-rank ones beside them have."""
    adapter, chip, width = costs.job.adapter, costs.job.cluster.chip, costs.width
    trained = op.gemms
    if adapter:
        targeted = target_of_op(op.name) in adapter.targets
        pairs = (((m, k, adapter.rank), (m, adapter.rank, n)) for m, k, n in op.gemms if targeted)
        trained = tuple(product for pair in pairs for product in pair)
    every = (*op.gemms, *trained) if adapter else op.gemms
    return _Products(
        forward=op.gemm_repeats * sum(product_us(m, k, n, chip, width) for m, k, n in every),
        inputs=op.gemm_repeats * sum(product_us(m, n, k, chip, width) for m, k, n in every),
        weights=op.gemm_repeats * sum(product_us(k, m, n, chip, width) for m, k, n in trained),
    )


def product_us(m: int, k: int, n: int, chip: Chip, width: int = 2) -> float:
    """Time of one product of (m, k) and (k, n), of elements of ``width`` bytes."""
    efficiency = chip.efficiency
    tiles = ceil(m / TILE_ROWS) * ceil(n / TILE_COLUMNS)
    waves = ceil(tiles / chip.cube_cores)
    paid = 2 * waves * chip.cube_cores * TILE_ROWS * TILE_COLUMNS * (k + efficiency.gemm_half_depth)
    cube = paid / (_peak_flops(chip, width) * efficiency.gemm) * 1e6
    return max(cube, traffic_us(width * (m * k + k * n + m * n), chip)) + efficiency.launch_us


def _peak_flops(chip: Chip, width: int) -> float:
    """The cube's peak for elements of ``width`` bytes."""
    return chip.cube_flops if width < 4 else chip.fp32_flops or chip.cube_flops


def attention_us(op: Op, chip: Chip, width: int = 2) -> tuple[float, float]:
    """Time of the attention kernel, forward and backward."""
    efficiency = chip.efficiency
    products = op.attention_flops / _peak_flops(chip, width) * 1e6
    softmax = op.attention_scores * efficiency.softmax_flops / chip.vector_flops * 1e6
    return (
        max(products / efficiency.attention_forward, softmax) + efficiency.launch_us,
        max(2.5 * products / efficiency.attention_backward, 2 * softmax) + efficiency.launch_us,
    )


def traffic_us(moved_bytes: float, chip: Chip, *, scattered: bool = False) -> float:
    """Time of memory traffic."""
    share = chip.efficiency.scatter if scattered else chip.efficiency.memory
    return moved_bytes / (chip.hbm_bandwidth * share) * 1e6


def swap_us(moved_bytes: float, chip: Chip, *, beside_us: float) -> float:
    """What moving bytes to or from the host adds to compute that runs beside it."""
    return max(0.0, moved_bytes / chip.host_bandwidth * 1e6 - beside_us)


def accumulate_us(elements: int, job: Job) -> float:
    """Time of adding a microbatch's gradients to the sums, where their products do not."""
    return 0.0 if job.memory.fused_accumulation else traffic_us(ACCUMULATE_BYTES * elements, job.cluster.chip)


def _with_comms(parts: Parts, op: Op, phase: str, costs: Costs) -> Parts:
    added = {"tp": 0.0, "cp": 0.0, "ep": 0.0}
    for comm in op.comms:
        if comm.phase == phase:
            us = collective_us(comm.kind, comm.size_bytes, costs.spread(comm.axes), costs.job.cluster) * comm.repeats
            added[_budget(comm)] += us - _hidden_us(us, parts, comm, costs)
    return parts._replace(**added)


def _hidden_us(us: float, parts: Parts, comm: Comm, costs: Costs) -> float:
    """What of a collective within a layer its own operation's compute hides."""
    efficiency = costs.job.cluster.chip.efficiency
    if comm.axes in ("cp", "ring") and comm.beside:  # a ring starts with what is there
        return efficiency.overlap * min(us, parts.attention * comm.repeats / (comm.repeats + 1))
    if comm.beside:
        return efficiency.overlap * min(us, parts.weight if comm.kind != "all_gather" else parts.gemm)
    if comm.axes == "tp" and costs.job.comm.tp_overlap != "none":
        return efficiency.fused_overlap * min(us, parts.gemm)
    return 0.0


def _budget(comm: Comm) -> str:
    if comm.axes in ("ep", "etp", "etp-ep"):
        return "ep"
    return "cp" if comm.axes in ("cp", "ulysses", "ring") else "tp"
