"""The machine a job runs on: the chip, its node, and the links within and between nodes."""

from typing import Literal

from ridgeline.core.fields import at_least, check_spec, degree, real
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Efficiency:
    """Shares of a chip's peaks that a training step reaches, and what its operations cost besides.

    ``ridgeline calibrate`` fits these to measured runs; a chip's data file says where its own come from.

    Attributes:
        gemm: Share of the cube's peak that a deep matrix product on whole tiles reaches.
        gemm_half_depth: A product that sums over this many elements reaches half of ``gemm``.
        attention_forward, attention_backward: Shares of the cube's peak in attention's products.
        softmax_flops: Of the vector unit for each score of attention, forward; the backward does as many for each of
            its two passes over the scores.
        memory: Share of the HBM bandwidth that operations bound by it reach.
        scatter: The same of operations that gather or scatter tokens by index.
        launch_us: Of each kernel, whatever its size.
        overlap: Share of the shorter of two that is hidden when a collective runs beside compute.
        fused_overlap: The same of a collective fused with its matrix product (MC2, CoC).
    """

    gemm: float = real(0.87, above=0.0, maximum=1.0)
    gemm_half_depth: float = real(64.0, minimum=0.0)
    attention_forward: float = real(0.65, above=0.0, maximum=1.0)
    attention_backward: float = real(0.55, above=0.0, maximum=1.0)
    softmax_flops: float = real(0.0, minimum=0.0)
    memory: float = real(0.68, above=0.0, maximum=1.0)
    scatter: float = real(0.68, above=0.0, maximum=1.0)
    launch_us: float = real(4.0, minimum=0.0)
    overlap: float = real(1.0, minimum=0.0, maximum=1.0)
    fused_overlap: float = real(0.8, minimum=0.0, maximum=1.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Chip:
    """One device as a rank sees it.

    Attributes:
        name: As the vendor spells it, ``910B2``.
        device: Which device code runs on it.
        cube_flops: Peak of the matrix unit in bf16, FLOP/s; the peak that divides MFU.
        fp32_flops: The same in fp32; None: as in bf16.
        cube_cores: Matrix units, over which the tiles of a product are spread.
        vector_flops: Peak of the vector unit, FLOP/s.
        hbm_bytes: Memory of one device.
        hbm_bandwidth: Bytes per second.
        host_bandwidth: Bytes per second in one direction, to or from the host's memory.
        reserved_bytes: Held back by the driver and runtime before the first tensor.
        efficiency: What of these peaks a step reaches.
        step_error: Nine of ten measured steps of models not fitted lay within this of their plans, either way; None
            where none was measured.
        source: Where the figures come from.
    """

    name: str
    device: Literal["npu", "cuda", "cpu"] = "npu"
    cube_flops: float = real(above=0.0)
    fp32_flops: float | None = real(None, above=0.0)
    cube_cores: int = at_least(1, default=1)
    vector_flops: float = real(above=0.0)
    hbm_bytes: int = at_least(1)
    hbm_bandwidth: float = real(above=0.0)
    host_bandwidth: float = real(25.6e9, above=0.0)
    reserved_bytes: int = at_least(0, default=0)
    efficiency: Efficiency = Efficiency()
    step_error: float | None = real(None, minimum=0.0)
    source: str = ""
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Link:
    """How devices reach each other on one level of the network.

    Attributes:
        topology: ``full_mesh``: one link to each peer, so a group of n uses n-1 of them. ``switched``: one port,
            whatever n.
        bandwidth: Bytes per second in one direction, of one link (full mesh) or one port (switched).
        latency_us: Time of an empty message.
        efficiency: Share of the bandwidth that collectives of a training step reach.
    """

    topology: Literal["full_mesh", "switched"] = "switched"
    bandwidth: float = real(above=0.0)
    latency_us: float = real(2.0, minimum=0.0)
    efficiency: float = real(0.4, above=0.0, maximum=1.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Cluster:
    """``nodes`` equal nodes of ``devices_per_node`` devices; ranks fill a node before the next."""

    name: str = "custom"
    chip: Chip
    nodes: int = degree()
    devices_per_node: int = at_least(1)
    intra: Link
    inter: Link
    __attrs_post_init__ = check_spec

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.devices_per_node
