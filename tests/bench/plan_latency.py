"""A plan from a cold start, against importing attrs and msgspec alone; and plans in a warm process."""

import subprocess
import sys
import time

from tests.bench.pairs import compare

PLAN = "import ridgeline; ridgeline.plan(ridgeline.preset('qwen2.5-7b'))"
BOUND = 2.0


def main() -> int:
    bare = [sys.executable, "-c", "import attrs, msgspec"]
    cold = compare(
        lambda: subprocess.run(bare, check=True), lambda: subprocess.run([*bare[:2], PLAN], check=True), pairs=20
    )
    print(f"`import attrs, msgspec` and `{PLAN}`: {cold}, at most {BOUND}")

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
