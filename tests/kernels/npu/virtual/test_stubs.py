"""Building the stand-ins: from torch_npu's own needs, once, whole or not at all."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual import stubs
from ridgeline.kernels.npu.virtual.elf import read_shared_library

pytestmark = pytest.mark.usefixtures("virtual_npu_needs")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return stubs.build_stubs(tmp_path_factory.mktemp("cache"))


def test_they_offer_all_that_is_missing(built: list[Path]) -> None:
    """Every missing library is there under its name, and every missing symbol is defined in one of them."""
    missing = stubs.missing_of_torch_npu()
    assert [path.name for path in built] == list(missing.libraries)
    defined = set().union(*(read_shared_library(path).defined for path in built))
    assert set(missing.symbols) <= defined
    assert "aclrtMalloc" in missing.symbols
    assert not any(name.startswith("_ZN2at") for name in missing.symbols), "torch has its own symbols"


def test_a_cache_is_used(built: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built is found again without a compiler's run, and nothing is left beside it."""
    monkeypatch.setattr(stubs, "_compile", None)
    assert stubs.build_stubs(built[0].parent.parent) == built
    assert list(built[0].parent.parent.iterdir()) == [built[0].parent]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the compiler fails, its words are told and the cache stays empty."""
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    cache = tmp_path / "cache"
    with pytest.raises(LoweringError, match=r"cannot compile the virtual NPU's lib\w+\.so:\nno room"):
        stubs.build_stubs(cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("torch_npu", r"needs torch_npu, which is not installed; run \S+ -m ridgeline\.kernels\.npu\.virtual\.install"),
        ("compiler", r"needs a C compiler, cc or gcc, which is not on the PATH; install gcc"),
    ],
)
def test_what_is_lacking_is_named(lacking: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch_npu or without a compiler the error says which and what to do."""
    if lacking == "torch_npu":
        monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", lambda name, path: None)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoweringError, match=message):
        stubs.build_stubs(tmp_path)


def test_what_is_no_library(tmp_path: Path) -> None:
    """A file that is not a shared library is named."""
    path = tmp_path / "x.so"
    path.write_text("text")
    with pytest.raises(ValueError, match=r"x\.so: not a 64-bit little-endian ELF file"):
        read_shared_library(path)


def test_symbols_are_what_nm_says(built: list[Path]) -> None:
    """The reader finds the same defined symbols as binutils."""
    path = built[[path.name for path in built].index("libascendcl.so")]
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    try:
        listed = run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("no nm on this machine")
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names == set(read_shared_library(path).defined)
