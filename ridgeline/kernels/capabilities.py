"""What each kind of device can do, as data that a planner reads without loading torch."""

from types import MappingProxyType
from typing import Literal, get_args

from ridgeline.core.errors import Problem, SpecError, nearest
from ridgeline.core.frozen import frozen

DeviceName = Literal["cpu", "npu", "cuda"]
DEVICE_NAMES: tuple[DeviceName, ...] = get_args(DeviceName)


@frozen(kw_only=True)
class Capabilities:
    """One kind of device.

    Attributes:
        name: As a job spells it; also torch's name for the device type.
        backend: Name of the torch.distributed backend for its collectives.
        dtypes: What its kernels compute in, torch's names without ``torch.``.
        streams: Kernels run behind the host's back, so that timing needs ``synchronize``.
        counts_memory: It counts its own allocations; otherwise the peak is the host process's resident memory.
    """

    name: DeviceName
    backend: Literal["gloo", "hccl", "nccl"]
    dtypes: tuple[str, ...]
    streams: bool
    counts_memory: bool


@frozen(kw_only=True)
class Software:
    """What stands between torch and an npu; None is what a machine does not say.

    Attributes:
        torch_npu: Its version, "2.13.0".
        cann: The version of CANN, "8.5.0".
        chip: As the driver names it, "Ascend910B2".
        triton_ascend: The version of triton-ascend, "3.6.0".
        fla: The version of fla-core, the kernels of flash-linear-attention, "0.6.0".
    """

    torch_npu: str | None = None
    cann: str | None = None
    chip: str | None = None
    triton_ascend: str | None = None
    fla: str | None = None


ASSUMED = Software(torch_npu="2.13.0", cann="8.5.0", chip="Ascend910B2", triton_ascend="3.6.0", fla="0.6.0")
"""What a plan counts on where nobody has looked; `ridgeline.kernels.npu.probe` looks when a run starts."""


CAPABILITIES: MappingProxyType[str, Capabilities] = MappingProxyType(
    {
        "cpu": Capabilities(
            name="cpu",
            backend="gloo",
            dtypes=("float32", "bfloat16", "float64", "float16"),
            streams=False,
            counts_memory=False,
        ),
        "npu": Capabilities(
            name="npu", backend="hccl", dtypes=("float32", "bfloat16", "float16"), streams=True, counts_memory=True
        ),
        "cuda": Capabilities(
            name="cuda",
            backend="nccl",
            dtypes=("float32", "bfloat16", "float64", "float16"),
            streams=True,
            counts_memory=True,
        ),
    }
)


def capabilities_of(name: str) -> Capabilities:
    """Look up what a device can do.

    Raises:
        SpecError: No such device.

    Example:
        >>> capabilities_of("npu").backend
        'hccl'
    """
    if name not in CAPABILITIES:
        raise SpecError(Problem("device", name, "unknown", nearest(name, CAPABILITIES)))
    return CAPABILITIES[name]
