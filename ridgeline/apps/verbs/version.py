"""``ridgeline version``: the versions of everything that matters to a run."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

PACKAGES = ("ridgeline", "torch", "torch_npu", "megatron-core", "transformers", "numpy", "attrs", "msgspec")


def version() -> None:
    """Print the versions of Python, the packages and the Ascend software, for a report or a log."""
    for name, text in versions().items():
        sys.stdout.write(f"{name:14}{text}\n")


def versions() -> dict[str, str]:
    """Name to version, read without importing any of them."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: _installed(name) for name in PACKAGES},
        "cann": _cann(),
    }


def _installed(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return "not installed"


def _cann() -> str:
    """As the toolkit's own file says, ``version=8.5.0``."""
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH")
    if not home:
        return "not found (ASCEND_TOOLKIT_HOME is not set)"
    for file in Path(home).rglob("ascend_toolkit_install.info"):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("version="):
                return line.removeprefix("version=")
    return f"no ascend_toolkit_install.info below {home}"
