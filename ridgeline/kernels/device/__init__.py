"""cpu, npu and cuda behind one small interface."""

from ridgeline.kernels.device.interface import Device, open_device

__all__ = ["Device", "open_device"]
