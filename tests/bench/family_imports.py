"""Every family imported: CPU time beside that of a process that has imported what reads a config, and lines a file."""

import statistics
import subprocess
import sys
from pathlib import Path

import ridgeline.models.families
from ridgeline.models.families.table import MODULES
from tests.bench.cold import compiled

BOUND_MS = 20.0
BOUND_LINES = 80
PROGRAM = """
import time
from ridgeline.models.hf_config import FAMILIES
begin = time.process_time()
for family in FAMILIES.values(): pass
print(1e3 * (time.process_time() - begin))
"""


def main() -> int:
    with compiled() as environment:
        command = [sys.executable, "-c", PROGRAM]
        runs = [
            float(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)
            for _ in range(10)
        ]
    files = sorted(Path(ridgeline.models.families.__path__[0]).glob("[!_]*.py"))
    lines = statistics.median(len(file.read_text().splitlines()) for file in files)
    print(f"{len(MODULES)} families imported in {min(runs):.1f} ms, at most {BOUND_MS}")
    print(f"the median of {len(files)} files has {lines:g} lines, at most {BOUND_LINES}")
    return int(min(runs) > BOUND_MS or lines > BOUND_LINES)


if __name__ == "__main__":
    sys.exit(main())
