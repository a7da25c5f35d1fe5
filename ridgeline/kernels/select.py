"""Choosing a kernel: which one an op gets, why, and what was passed over."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from ridgeline.core.errors import LoweringError, nearest
from ridgeline.core.frozen import frozen
from ridgeline.kernels.capabilities import ASSUMED, CAPABILITIES, DeviceName, Software
from ridgeline.kernels.table import KERNELS, Kernel

Policy = Literal["auto", "strict"]
NO_TRAITS: Mapping[str, int] = MappingProxyType({})


@frozen(kw_only=True)
class Passed:
    """A kernel that was not taken, and why."""

    kernel: str
    why: str

    def __str__(self) -> str:
        return f"{self.kernel} ({self.why})"


@frozen(kw_only=True)
class Choice:
    """The kernel an op gets.

    Attributes:
        op: What is computed.
        kernel: Name of the kernel, one of the op's.
        reason: Why this one.
        passed_over: Those of the device that were preferred but cannot, in the table's order.
    """

    op: str
    kernel: str
    reason: str
    passed_over: tuple[Passed, ...] = ()

    def __str__(self) -> str:
        passed = f"; passed over: {', '.join(map(str, self.passed_over))}" if self.passed_over else ""
        return f"{self.op}: {self.kernel}, {self.reason}{passed}"


def select(
    op: str,
    *,
    device: DeviceName,
    dtype: str,
    traits: Mapping[str, int] = NO_TRAITS,
    policy: Policy = "auto",
    deterministic: bool = False,
    software: Software = ASSUMED,
    table: Mapping[str, tuple[Kernel, ...]] = KERNELS,
) -> Choice:
    """Choose the first kernel of an op that can do the call.

    Args:
        op: A key of ``table``.
        device: Where it runs.
        dtype: Of its inputs, torch's name: "bfloat16".
        traits: Sizes of the call that kernels may limit, by name: ``{"head_dim": 128}``.
        policy: "auto" takes what works, if need be plain torch; "strict" only what was written for the device.
        deterministic: Take only what gives equal bits for equal inputs.
        software: What the device's machine has installed.
        table: Kernels of each op, preferred ones first.

    Raises:
        LoweringError: No such op, or no kernel of it can.

    Example:
        >>> print(select("rms_norm", device="cpu", dtype="bfloat16"))
        rms_norm: torch, the first that runs on cpu in bfloat16
    """
    if op not in table:
        raise LoweringError(f"op={op!r}: unknown; {nearest(op, table)}")
    passed: list[Passed] = []
    for kernel in (kernel for kernel in table[op] if device in kernel.devices):
        why = "not deterministic" if deterministic and not kernel.deterministic else ""
        why = why or _obstacle(kernel, device, dtype, traits, policy, software)
        if not why:
            reason = (device == "npu" and kernel.why_on_npu) or f"the first that runs on {device} in {dtype}"
            return Choice(op=op, kernel=kernel.name, reason=reason, passed_over=tuple(passed))
        passed.append(Passed(kernel=kernel.name, why=why))
    raise LoweringError(
        f"op={op!r} has no kernel on device={device!r} for dtype={dtype}; passed over: {', '.join(map(str, passed))}"
    )


def available(
    chosen: Iterable[tuple[str, str]],
    *,
    software: Software,
    policy: Policy = "auto",
    table: Mapping[str, tuple[Kernel, ...]] = KERNELS,
) -> tuple[Choice, ...]:
    """Chosen kernels on the machine that is there: plain torch in the place of each that it has not the software for.

    Args:
        chosen: Ops and their kernels, as a plan has them.
        software: What the machine has installed.
        policy: "strict" replaces none.
        table: Where all are found.

    Raises:
        LoweringError: Names every kernel that is missing under "strict", and what it needs.
    """
    choices = tuple(_available(op, name, software, table) for op, name in chosen)
    missing = [f"{choice.op}: {choice.passed_over[0]}" for choice in choices if choice.passed_over]
    if missing and policy == "strict":
        raise LoweringError(f"run.kernels='strict': this machine lacks {'; '.join(missing)}; install it or use 'auto'")
    return choices


def _available(op: str, name: str, software: Software, table: Mapping[str, tuple[Kernel, ...]]) -> Choice:
    kernel = next(kernel for kernel in table[op] if kernel.name == name)
    why = next(filter(None, (need.rule(software) for need in kernel.needs)), "")
    if not why:
        return Choice(op=op, kernel=name, reason="as planned")
    return Choice(
        op=op,
        kernel=table[op][-1].name,
        reason="the planned kernel is not on this machine",
        passed_over=(Passed(kernel=name, why=why),),
    )


def kernel_of(choice: Choice, *, table: Mapping[str, tuple[Kernel, ...]] = KERNELS) -> Kernel:
    """Look up the row that was chosen."""
    return next(kernel for kernel in table[choice.op] if kernel.name == choice.kernel)


def _obstacle(
    kernel: Kernel, device: DeviceName, dtype: str, traits: Mapping[str, int], policy: Policy, software: Software
) -> str:
    """Why a kernel cannot do a call; nothing if it can."""
    if dtype not in kernel.dtypes or dtype not in CAPABILITIES[device].dtypes:
        return "dtype"
    if policy == "strict" and device in kernel.fallback_on:
        return "policy='strict'"
    missing = next(filter(None, (need.rule(software) for need in kernel.needs)), "")
    if missing:
        return missing
    # A limit on a trait that the caller did not state cannot be known to hold.
    rules = [
        limit.rule(traits[limit.trait]) if limit.trait in traits else f"{limit.trait} not given"
        for limit in kernel.limits
    ]
    return next(filter(None, rules), "")
