"""What is installed on this machine, for kernels that need it."""

import importlib

import torch

from ridgeline.kernels.capabilities import Software


def installed_software() -> Software:
    """Ask torch_npu for its version, CANN's and the chip's name; torch_npu must be imported already."""
    torch_npu = importlib.import_module("torch_npu")
    cann = importlib.import_module("torch_npu.npu.utils").get_cann_version(module="CANN")
    return Software(
        torch_npu=torch_npu.__version__.split("+")[0],
        cann=cann or None,
        chip=torch.npu.get_device_name(),  # pyright: ignore[reportAttributeAccessIssue]  added by torch_npu
    )
