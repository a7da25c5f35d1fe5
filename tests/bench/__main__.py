"""Run every benchmark: ``python -m tests.bench``."""

import os
import subprocess
import sys

BENCHMARKS = (
    "plan_latency",
    "family_imports",
    "schedule_speed",
    "reshard_planning",
    "conversion",
    "layer_speed",
    "training_speed",
)


def main() -> int:
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # of what others import, among which the figures would be lost
    commands = [[sys.executable, "-m", f"tests.bench.{name}"] for name in BENCHMARKS]
    return max(subprocess.run(command, env=quiet, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
