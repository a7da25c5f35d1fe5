"""Every kernel there is: which code computes which op, on which device, in which dtypes, within which limits.

A row is data. Its function is an import string, so that a planner reads the table without loading torch. Rows of an op
stand in the order of preference; the last one is plain torch and is what the op means. All kernels of an op are called
alike, as its reference's docstring says.

A kernel for the npu is a module in ``ridgeline/kernels/npu/`` and a row before the reference's::

    Kernel(
        op="rms_norm",
        name="npu_rms_norm",
        function="ridgeline.kernels.npu.rms_norm:rms_norm",
        devices=("npu",),
        dtypes=("bfloat16", "float16", "float32"),
        limits=(Limit(trait="hidden", maximum=65535),),
    )
"""

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from ridgeline.kernels.capabilities import DEVICE_NAMES, DeviceName


@attrs.frozen(kw_only=True)
class Limit:
    """What a kernel asks of one trait of its call, such as ``head_dim``; None asks nothing."""

    trait: str
    maximum: int | None = None
    multiple_of: int | None = None

    def rule(self, value: int) -> str:
        """The rule that a value breaks, or nothing.

        Example:
            >>> Limit(trait="head_dim", maximum=768, multiple_of=2).rule(769)
            'head_dim=769: must be <= 768'
        """
        if self.maximum is not None and value > self.maximum:
            return f"{self.trait}={value}: must be <= {self.maximum}"
        if self.multiple_of is not None and value % self.multiple_of:
            return f"{self.trait}={value}: must be a multiple of {self.multiple_of}"
        return ""


@attrs.frozen(kw_only=True)
class Kernel:
    """One implementation of an op.

    Attributes:
        op: What it computes.
        name: What a plan calls it; unique within the op.
        function: ``module:function``.
        devices: Where it runs.
        dtypes: Of its inputs, torch's names.
        limits: On traits of the call.
        fallback_on: Devices for which it was not written; policy "strict" passes it over there.
    """

    op: str
    name: str
    function: str
    devices: tuple[DeviceName, ...]
    dtypes: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    fallback_on: tuple[DeviceName, ...] = ()


def _reference(op: str) -> Kernel:
    return Kernel(
        op=op,
        name="torch",
        function=f"ridgeline.kernels.reference.{op}:{op}",
        devices=DEVICE_NAMES,
        dtypes=("float32", "bfloat16", "float16", "float64"),
        fallback_on=("npu",),
    )


KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "attention": (_reference("attention"),),
        "rms_norm": (_reference("rms_norm"),),
        "rope": (_reference("rope"),),
        "swiglu": (_reference("swiglu"),),
    }
)
