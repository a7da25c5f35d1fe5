"""Megatron-core's bugs that are repaired: each is still there, and gone inside the bridge."""

import numpy as np
import pytest
import torch

from ridgeline.kernels.device import open_device
from ridgeline.kernels.device.upstream import REPAIRS, Repair, move_tensor_to_host


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.target)
def test_the_bug_is_still_there(repair: Repair) -> None:
    """When this fails, upstream has mended the bug: delete the row."""
    assert repair.is_needed()


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.target)
def test_the_bug_is_gone_inside(repair: Repair) -> None:
    """Inside the bridge the installation no longer needs the repair; after it, it does again."""
    with open_device("cpu").bridge():
        assert not repair.is_needed()
    assert repair.is_needed()


def test_tensors_move_to_the_host() -> None:
    """Tensors become host tensors or arrays of equal values; what is no tensor passes."""
    x = torch.arange(3, requires_grad=False)
    assert torch.equal(move_tensor_to_host(x), x)
    assert isinstance(move_tensor_to_host(x, as_numpy=True), np.ndarray)
    assert move_tensor_to_host([1, 2], as_numpy=True) == [1, 2]
    assert move_tensor_to_host(None) is None
