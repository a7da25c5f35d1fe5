"""Every kernel on torch_npu: its numbers beside the reference's, its shapes, and that no call goes untested."""

import ast
import re
from pathlib import Path

import pytest
import torch

import ridgeline.kernels.npu
from ridgeline.kernels.npu.virtual.emulate import emulated_npu
from ridgeline.kernels.npu.virtual.fake import fake_npu
from ridgeline.kernels.npu.virtual.single import npu_ops_on_cpu
from ridgeline.kernels.table import KERNELS
from tests.kernels.npu.cases import CASES
from tests.kernels.npu.running import arguments_of, everything, moved

EVERY_CASE = pytest.mark.parametrize("name", CASES)
ON_RANKS = {"gather_matmul", "matmul_scatter", "matmul_reduce"}
"""Kernels that need two ranks: test_collective_matmul.py has them."""
NOT_TORCH_NPU = {"gated_delta_rule"}
"""Kernels of another package: test_gated_delta_rule.py has it."""


@EVERY_CASE
@pytest.mark.usefixtures("virtual_npu")
def test_numbers_equal_the_reference(name: str) -> None:
    """Outputs, changed arguments and gradients are those of plain torch, under torch_npu's own autograd."""
    case = CASES[name]
    expected = everything(case, "torch", moved(arguments_of(case), lambda x: x))
    with emulated_npu():
        got = everything(case, case.kernel, moved(arguments_of(case), lambda x: x.to("npu")))
        assert all(x.device.type == "npu" for x in got)
        got = [x.detach().cpu() for x in got]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=case.rtol, atol=case.atol)


@EVERY_CASE
@pytest.mark.usefixtures("virtual_npu")
def test_single_ops_equal_the_reference(name: str) -> None:
    """The same with CPU tensors, each op alone, where gradients are torch's own through what the op computes."""
    case = CASES[name]
    expected = everything(case, "torch", moved(arguments_of(case), lambda x: x))
    with npu_ops_on_cpu():
        got = everything(case, case.kernel, moved(arguments_of(case), lambda x: x))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=case.rtol, atol=case.atol)


@EVERY_CASE
@pytest.mark.usefixtures("virtual_npu")
def test_shapes_by_torch_npus_own_rules(name: str) -> None:
    """On fake tensors torch_npu's meta functions give the shapes and dtypes that the reference has."""
    case = CASES[name]
    real = arguments_of(case)
    expected = everything(case, "torch", moved(real, lambda x: x))
    with fake_npu() as mode:
        got = everything(case, case.kernel, moved(real, lambda x: mode.from_tensor(x).to("npu")))
        for ours, theirs in zip(got, expected, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.usefixtures("virtual_npu")
def test_every_call_runs() -> None:
    """Each op of torch_npu that the source calls is executed by some case, or on ranks."""
    executed: set[str] = set()
    with emulated_npu(executed=executed):
        for case in CASES.values():
            everything(case, case.kernel, moved(arguments_of(case), lambda x: x.to("npu")))
    called = set().union(*(calls(path) for path in sources() if path.stem != "collective_matmul"))
    assert called, "the search finds the calls"
    executed |= {name.replace("npu::_", "npu::") for name in executed}  # what autograd makes of some
    assert called <= executed, called - executed


def test_every_kernel_has_a_case() -> None:
    """Each npu row of the table stands in a case."""
    rows = {
        (kernel.op, kernel.function) for kernels in KERNELS.values() for kernel in kernels if kernel.name != "torch"
    }
    functions = {
        kernel.function for case in CASES.values() for kernel in KERNELS[case.op] if kernel.name == case.kernel
    }
    assert {op for op, function in rows if function not in functions} == ON_RANKS | NOT_TORCH_NPU


def test_only_these_files_call_torch_npu() -> None:
    """No other file of the package calls an op of torch_npu."""
    package = Path(ridgeline.kernels.npu.__path__[0]).parent.parent
    elsewhere = [path for path in package.rglob("*.py") if calls(path) and path not in sources()]
    assert [path for path in elsewhere if "virtual" not in path.parts] == []


def sources() -> list[Path]:
    """Our kernels on torch_npu."""
    return sorted(Path(ridgeline.kernels.npu.__path__[0]).glob("*.py"))


def calls(path: Path) -> set[str]:
    """The ops that a file calls, as ``torch.ops.npu.x`` or ``torch_npu.npu_x``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            match = re.fullmatch(r"(torch\.ops\.npu|torch_npu)\.(\w+)", ast.unparse(node.func))
            if match:
                found.add(f"npu::{match[2]}")
    return found
