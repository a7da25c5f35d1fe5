"""The example that the README points to runs from its first line to its last."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_compose_plans_lowers_and_trains():
    """It plans a 7B model, lowers rank 5, and makes five steps of a small one."""
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, EXAMPLES / "compose.py"], env=environment, check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "rank 5:" in done.stdout
    assert "trained to step 5, loss " in done.stdout
