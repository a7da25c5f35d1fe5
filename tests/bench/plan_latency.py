"""A plan from a cold start, against importing attrs and msgspec alone; and plans in a warm process."""

import os
import resource
import subprocess
import sys
import tempfile
import time

from tests.bench.pairs import compare

PLAN = "import ridgeline; ridgeline.plan(ridgeline.preset('qwen2.5-7b'))"
BOUND = 2.0


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        # pip compiles what it installs: both start from compiled files, whatever PYTHONDONTWRITEBYTECODE says here.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "PYTHONPYCACHEPREFIX": folder}

        def run(program: str) -> None:
            subprocess.run([sys.executable, "-c", program], check=True, env=environment)

        def children_s() -> float:
            """CPU time of the programs run so far: what an idle machine takes, whatever else this one does."""
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            return used.ru_utime + used.ru_stime

        cold = compare(lambda: run("import attrs, msgspec"), lambda: run(PLAN), pairs=20, clock=children_s)
    print(f"`import attrs, msgspec` and `{PLAN}`: {cold}, at most {BOUND}", flush=True)

    import ridgeline

    for name, nodes in (("qwen2.5-7b", 1), ("llama3.1-405b", 128), ("qwen3-235b-a22b", 128)):
        job = ridgeline.preset(name, nodes=nodes)
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            ridgeline.plan(job)
            times.append(time.perf_counter() - begin)
        print(f"plan of {name} on {job.cluster.world_size} devices: {1e3 * min(times):.1f} ms")
    return int(cold.ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
