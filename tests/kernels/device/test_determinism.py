"""The switch for equal bits."""

import contextlib
import os

import pytest
import torch

from ridgeline.kernels.device import open_device


def test_what_was_set_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, torch is deterministic and draws from the seed; outside all is as it was, also after an error."""
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with contextlib.suppress(KeyError), open_device("cpu").deterministic(7):
            assert torch.are_deterministic_algorithms_enabled()
            assert os.environ["PYTHONHASHSEED"] == "7"
            draws.append(torch.rand(3))
            raise KeyError
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["PYTHONHASHSEED"] == "5"
