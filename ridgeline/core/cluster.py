"""The machine a job runs on: the chip, its node, and the links within and between nodes."""

from typing import Literal

from ridgeline.core.fields import at_least, check_spec, degree, real
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Chip:
    """One device as a rank sees it.

    Attributes:
        name: As the vendor spells it, ``910B2``.
        device: Which device code runs on it.
        cube_flops: Peak of the matrix unit in bf16, FLOP/s; the peak that divides MFU.
        vector_flops: Peak of the vector unit, FLOP/s.
        hbm_bytes: Memory of one device.
        hbm_bandwidth: Bytes per second.
        reserved_bytes: Held back by the driver and runtime before the first tensor.
        source: Where the figures come from.
    """

    name: str
    device: Literal["npu", "cuda", "cpu"] = "npu"
    cube_flops: float = real(above=0.0)
    vector_flops: float = real(above=0.0)
    hbm_bytes: int = at_least(1)
    hbm_bandwidth: float = real(above=0.0)
    reserved_bytes: int = at_least(0, default=0)
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
    """

    topology: Literal["full_mesh", "switched"] = "switched"
    bandwidth: float = real(above=0.0)
    latency_us: float = real(2.0, minimum=0.0)
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
