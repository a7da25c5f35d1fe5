"""Every random stream that a rank's training draws from, as plain data."""

import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, get_cuda_rng_tracker


def random_streams(device: torch.device) -> dict[str, Any]:
    """The state of Python's, numpy's and torch's generators and of Megatron-core's tensor-parallel streams."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
        "megatron": dict(_tracker().get_states()),
    }


def set_random_streams(streams: dict[str, Any], device: torch.device) -> None:
    """Put back what ``random_streams`` gave."""
    version, words, gauss = streams["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = streams["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(streams["torch"])
    if streams["device"] is not None:
        torch.get_device_module(device).set_rng_state(streams["device"])
    _tracker().set_states(streams["megatron"])


def _tracker() -> CudaRNGStatesTracker:
    tracker = get_cuda_rng_tracker()
    assert tracker is not None
    return tracker
