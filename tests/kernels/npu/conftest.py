"""Tests that run in a process of the virtual NPU: those that use the fixture ``virtual_npu``.

All of a session share one process, whose import of torch_npu takes seconds. Without torch_npu or a C compiler they
are skipped, and the summary says so.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual.processes import VirtualProcess, virtual_processes
from ridgeline.kernels.npu.virtual.stubs import check_virtual_npu


@pytest.fixture(scope="session")
def virtual_npu_needs() -> None:
    """Skip where there can be no virtual NPU."""
    try:
        check_virtual_npu()
    except LoweringError as error:
        pytest.skip(f"NOT TESTED: {error}")


@pytest.fixture(scope="session")
def virtual_npu(virtual_npu_needs: None) -> Iterator[VirtualProcess]:
    """The process that runs every test that uses this fixture."""
    with virtual_processes() as (process,):
        process.call("tests.kernels.npu.conftest:prepare")
        yield process


def prepare() -> None:
    """In the process: hypothesis's profile, which importing does."""
    importlib.import_module("tests.conftest")


@pytest.fixture(scope="session")
def virtual_ranks(virtual_npu_needs: None) -> Iterator[list[VirtualProcess]]:
    """Two processes that form a gloo world together."""
    with virtual_processes(2) as processes:
        yield processes


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    """Send a test to its process; what it asserts there fails here, with the traceback from there."""
    if "virtual_npu" not in pyfuncitem.fixturenames:
        return None
    names = set(pyfuncitem._fixtureinfo.argnames) - {"virtual_npu"}
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    process = pyfuncitem.funcargs.get("virtual_npu") or pyfuncitem._request.getfixturevalue("virtual_npu")
    process.call(
        f"{pyfuncitem.module.__name__}:{pyfuncitem.name.split('[')[0]}", file=str(pyfuncitem.path), **arguments
    )
    return True
