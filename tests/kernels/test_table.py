"""The kernel table as data."""

import re
from pathlib import Path

import attrs
import pytest

from ridgeline.kernels.capabilities import CAPABILITIES
from ridgeline.kernels.select import select
from ridgeline.kernels.table import KERNELS, Kernel, Limit

ROWS = [kernel for kernels in KERNELS.values() for kernel in kernels]


@pytest.mark.parametrize("kernel", ROWS, ids=lambda kernel: f"{kernel.op}-{kernel.name}")
def test_rows_are_sound(kernel: Kernel) -> None:
    """A row stands under its op, names a module of an edge folder, and claims only dtypes that its devices have."""
    assert kernel in KERNELS[kernel.op]
    assert re.fullmatch(r"ridgeline\.kernels\.(reference|npu)\.\w+:\w+", kernel.function)
    assert kernel.devices
    assert set(kernel.fallback_on) <= set(kernel.devices)
    assert set(kernel.dtypes) <= {dtype for device in kernel.devices for dtype in CAPABILITIES[device].dtypes}


@pytest.mark.parametrize("op", KERNELS)
def test_every_op_has_its_meaning(op: str) -> None:
    """Names are unique within an op, and its last row is plain torch, on every device."""
    names = [kernel.name for kernel in KERNELS[op]]
    assert len(set(names)) == len(names)
    assert names[-1] == "torch"
    assert set(KERNELS[op][-1].devices) == set(CAPABILITIES)


@pytest.mark.parametrize("op", KERNELS)
def test_plain_torch_has_a_reason(op: str) -> None:
    """An op without a kernel for an npu says why, and none that has one does; a plan gives the reason."""
    kernels = KERNELS[op]
    assert bool(kernels[-1].why_on_npu) == (len(kernels) == 1)
    if len(kernels) == 1:
        assert select(op, device="npu", dtype="bfloat16").reason == kernels[0].why_on_npu
        assert select(op, device="cpu", dtype="bfloat16").reason == "the first that runs on cpu in bfloat16"


def test_the_table_is_read_only() -> None:
    """Neither the table nor a row can be changed."""
    with pytest.raises(TypeError):
        KERNELS["rms_norm"] = ()  # pyright: ignore[reportIndexIssue]  the mistake under test
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ROWS[0].name = "other"  # pyright: ignore[reportAttributeAccessIssue]  the mistake under test


def test_limits() -> None:
    """A limit says which rule a value breaks, and nothing of one it keeps."""
    limit = Limit(trait="head_dim", maximum=768, multiple_of=16)
    assert limit.rule(768) == ""
    assert limit.rule(784) == "head_dim=784: must be <= 768"
    assert limit.rule(40) == "head_dim=40: must be a multiple of 16"
    assert str(limit) == "head_dim <= 768, a multiple of 16"
    among = Limit(trait="tp", minimum=2, among=(2, 4, 8))
    assert [among.rule(value) for value in (1, 2, 3)] == ["tp=1: must be >= 2", "", "tp=3: use 2, 4 or 8"]


PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
OPS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| `\w+`.*\|.*\|.*\|.*\|", line)]
"""The page's table of ops, cell by cell: op, on an npu, derivative, limits, judge."""


def test_the_page_names_every_op() -> None:
    """docs/kernels.md has each op of the table and each kernel of torch_npu, and names none that is not there."""
    listed = {name for row in OPS for cell in row[:3] for name in re.findall(r"`(\w+)`", cell)}
    assert set(KERNELS) <= listed
    kernels = {kernel.name for kernel in ROWS if kernel.name.startswith(("npu_", "fla_"))}
    kernels -= {"npu_fusion_attention_no_sinks"}
    assert kernels <= listed
    assert (
        not {name for name in listed if name.startswith("npu_")}
        - kernels
        - {
            "npu_grouped_matmul_add_",
            "npu_moe_gating_top_k_softmax",
            "npu_rms_norm_backward",
            "npu_swiglu_backward",
        }
    )


def test_the_page_has_every_limit_and_reason() -> None:
    """Each row of the page has what its ops' first kernel asks of a call and of the machine, or why there is none."""
    for row in OPS:
        for op in (op for op in re.findall(r"`(\w+)`", row[0]) if op in KERNELS):
            first = KERNELS[op][0]
            asked = [str(rule) for rule in (*first.limits, *first.needs) if str(rule) != "torch_npu >= 2.13"]
            assert row[3] == ("; ".join(asked) or "none"), op
            assert first.why_on_npu in row[1]


def test_every_row_of_the_page_is_whole() -> None:
    """No cell is empty but that of a step, which has no derivative, and of a kernel without limits."""
    for row in OPS:
        assert len(row) == 5, row
        assert row[1], row
        assert row[4], row
