"""Where the virtual NPU finds torch_npu: among the installed packages, or beside them.

Beside them is for machines without Ascend software. There an installed torch_npu breaks what looks for it: transformers
imports any that it finds, and fails. ``python -m ridgeline.kernels.npu.virtual.install`` puts it where only the virtual
NPU looks.
"""

import importlib.machinery
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from ridgeline.core.errors import LoweringError

BESIDE = Path(sys.prefix) / "virtual_npu"


def torch_npu_folder() -> Path:
    """The folder that holds the package torch_npu.

    Raises:
        LoweringError: It is installed nowhere.
    """
    spec = importlib.machinery.PathFinder.find_spec("torch_npu", [*sys.path, str(BESIDE)])
    if spec is None or spec.origin is None:
        raise LoweringError(
            f"the virtual NPU needs torch_npu, which is not installed; run {Path(sys.executable).name} -m {MODULE}"
        )
    return Path(spec.origin).parent.parent


def main() -> None:
    """Install the torch_npu that this project names, unless it is there already."""
    try:
        torch_npu_folder()
    except LoweringError:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--target", str(BESIDE), _requirement()], check=True)


def _requirement() -> str:
    """What the extra ``npu`` asks for, without its environment marker."""
    lines = importlib.metadata.requires("ridgeline") or []
    return next(line.split(";")[0].strip() for line in lines if re.match(r"torch[-_]npu\b", line))


MODULE = "ridgeline.kernels.npu.virtual.install"

if __name__ == "__main__":
    main()
