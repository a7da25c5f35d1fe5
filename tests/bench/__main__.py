"""Run every benchmark: ``python -m tests.bench``."""

import subprocess
import sys

BENCHMARKS = ("plan_latency", "training_speed")


def main() -> int:
    return max(
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False).returncode for name in BENCHMARKS
    )


if __name__ == "__main__":
    sys.exit(main())
