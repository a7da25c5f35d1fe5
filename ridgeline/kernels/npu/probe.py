"""What is installed on this machine, for kernels that need it."""

import importlib
from importlib.metadata import PackageNotFoundError, version

import torch

from ridgeline.kernels.capabilities import Software


def installed_software() -> Software:
    """Ask torch_npu for its version, CANN's and the chip's name, and the environment for packages beside them.

    torch_npu must be imported already.
    """
    torch_npu = importlib.import_module("torch_npu")
    cann = importlib.import_module("torch_npu.npu.utils").get_cann_version(module="CANN")
    return Software(
        torch_npu=torch_npu.__version__.split("+")[0],
        cann=cann or None,
        chip=torch.npu.get_device_name(),  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
        triton_ascend=_installed("triton-ascend"),
        fla=_installed("fla-core"),
    )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
