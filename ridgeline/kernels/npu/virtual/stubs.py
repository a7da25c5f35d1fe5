"""Stand-ins for the CANN libraries that torch_npu is linked to, compiled once into a cache of the user.

Which libraries and symbols are missing is read from torch_npu's own files, so that another version finds its own.
"""

import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import attrs

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual.elf import read_shared_library
from ridgeline.kernels.npu.virtual.install import torch_npu_folder

SOURCES = {"libascendcl.so": "runtime.c", "libacl_op_compiler.so": "op_compiler.c"}
"""The stand-ins that answer; all others are empty. The symbols of all are defined in the first."""


@attrs.frozen(kw_only=True)
class Missing:
    """What torch_npu needs and this machine lacks, each sorted.

    Attributes:
        version: Of torch_npu.
        libraries: Names, such as ``libascendcl.so``.
        symbols: That some library of CANN would define.
    """

    version: str
    libraries: tuple[str, ...]
    symbols: tuple[str, ...]


def check_virtual_npu() -> None:
    """Tell what the virtual NPU lacks on this machine.

    Raises:
        LoweringError: torch_npu is not installed, or there is no C compiler.
    """
    torch_npu_folder()
    if _compiler() is None:
        raise LoweringError("the virtual NPU needs a C compiler, cc or gcc, which is not on the PATH; install gcc")


def build_stubs(cache: Path | None = None) -> list[Path]:
    """The stand-ins, in the order in which to load them; compiled if the cache has none for this torch_npu.

    Args:
        cache: Folder to keep them in; None is the user's own, ``$XDG_CACHE_HOME/ridgeline``.

    Raises:
        LoweringError: torch_npu or the compiler is missing or fails, or CANN is installed, so that nothing is missing.
    """
    check_virtual_npu()
    missing = missing_of_torch_npu()
    if not missing.libraries:
        raise LoweringError("CANN is installed on this machine: use device='npu' itself, not the virtual NPU")
    folder = (cache or _user_cache()) / f"virtual_npu-{missing.version}-{_digest(missing)}"
    if not folder.is_dir():
        _compile(missing, folder)
    return [folder / name for name in missing.libraries]


def missing_of_torch_npu() -> Missing:
    """Read torch_npu's files, without importing it, and compare with what this machine can load."""
    import torch

    home = torch_npu_folder() / "torch_npu"
    own = {path.name: read_shared_library(path) for path in (*home.glob("lib/*.so"), *home.glob("_C*.so"))}
    torch_libraries = sorted(Path(torch.__file__).parent.glob("lib/*.so*"))
    needed = set().union(*(library.needed for library in own.values()))
    needed -= {*own, *(path.name for path in torch_libraries)}
    found = [ctypes.CDLL(str(path)) for path in torch_libraries]
    libraries = []
    for name in sorted(needed):
        try:
            found.append(ctypes.CDLL(name))
        except OSError:
            libraries.append(name)
    undefined = set().union(*(library.undefined for library in own.values()))
    undefined -= set().union(*(library.defined for library in own.values()))
    python = ctypes.CDLL(None)
    symbols = sorted(name for name in undefined if not any(hasattr(library, name) for library in (python, *found)))
    (distribution,) = importlib.metadata.distributions(name="torch_npu", path=[str(home.parent)])
    return Missing(version=distribution.version, libraries=tuple(libraries), symbols=tuple(symbols))


def _digest(missing: Missing) -> str:
    sources = (Path(__file__).with_name(source).read_text() for source in SOURCES.values())
    return hashlib.sha256("\n".join((*missing.libraries, *missing.symbols, *sources)).encode()).hexdigest()[:16]


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ridgeline"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def _compile(missing: Missing, folder: Path) -> None:
    """Compile into a folder beside the cache's and rename it, so that none is ever seen half-made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        building = Path(temporary) / "stubs"
        building.mkdir()
        weak = building / "symbols.c"  # weak: a definition of the runtime comes first
        weak.write_text(
            "".join(f"__attribute__((weak)) long {name}(void) {{ return 0; }}\n" for name in missing.symbols)
        )
        empty = building / "empty.c"
        empty.touch()
        for name in missing.libraries:
            sources = [Path(__file__).with_name(SOURCES[name])] if name in SOURCES else [empty]
            _compile_one(building / name, [*sources, weak] if name == next(iter(SOURCES)) else sources)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


def _compile_one(library: Path, sources: list[Path]) -> None:
    compiler = _compiler()
    assert compiler is not None
    command = [compiler, "-w", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", str(library)]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoweringError(f"{compiler} cannot compile the virtual NPU's {library.name}:\n{done.stderr}")
