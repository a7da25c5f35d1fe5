"""What all tests share: an environment without surprises, and ranks."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch starts, here and in the workers: no search for other vendors' backends, one thread a process.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers import tests by name. Last in line, so that an installed ridgeline is the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import pytest
from hypothesis import settings

from tests.pool import Pool, open_pool

# How fast a machine runs an example is no property of the code; a loaded one would fail for it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")  # also wherever a test is sent to run: its process imports this module


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    """Up to four gloo ranks: ``ranks.run(function, world_size, *args)`` gives what each rank returned.

    Their imports count against no test's time (``timeout_func_only``).
    """
    with open_pool() as pool:
        pool.start()
        yield pool
