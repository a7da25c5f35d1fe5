"""A plan from a cold start, against importing attrs and msgspec alone; plans in a warm process; and searches."""

import resource
import subprocess
import sys
import time
from typing import Any

from tests.bench.cold import compiled
from tests.bench.pairs import compare

PLAN = "import ridgeline; ridgeline.plan(ridgeline.preset('qwen2.5-7b'))"
BOUND = 2.0
DEEPSEEK_V3 = {"tp": 1, "pp": 16, "ep": 8, "stages": (5, *(4,) * 14, 0)}
"""The layout that its search finds."""
WARM: tuple[tuple[str, int, dict[str, Any], float], ...] = (
    ("llama2-7b", 1, {}, 2),
    ("llama3.1-405b", 128, {}, 20),
    ("qwen3-235b-a22b", 128, {}, 20),
    ("deepseek-v3", 128, {"layout": DEEPSEEK_V3, "batch": {"gbs": 15360}}, 20),
)
"""Model, nodes, fields of the job, and milliseconds that a plan may take, nothing cached."""
SEARCHES = (
    ("llama2-7b --cluster atlas-800t-a2 --gbs 128", 1.0),
    ("deepseek-v3 --cluster atlas-800t-a2 --nodes 128 --gbs 15360", 10.0),
)


def children_s() -> float:
    """CPU time of the programs run so far: what an idle machine takes, whatever else this one does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    with compiled() as environment:

        def run(program: str) -> None:
            subprocess.run([sys.executable, "-c", program], check=True, env=environment)

        def search_s(words: str) -> float:
            """CPU seconds of a search from a cold shell."""
            command = [sys.executable, "-m", "ridgeline", "search", *words.split()]
            begin = children_s()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            return children_s() - begin

        cold = compare(lambda: run("import attrs, msgspec"), lambda: run(PLAN), pairs=20, clock=children_s)
        searches = [(words, min(search_s(words) for _ in range(2)), bound_s) for words, bound_s in SEARCHES]
    print(f"`import attrs, msgspec` and `{PLAN}`: {cold}, at most {BOUND}", flush=True)

    import ridgeline

    slow = [seconds > bound_s for _, seconds, bound_s in searches]
    for words, seconds, bound_s in searches:
        print(f"ridgeline search {words}: {seconds:.2f} s of CPU from a cold shell, at most {bound_s}")
    for name, nodes, fields, bound_ms in WARM:
        job = ridgeline.preset(name, nodes=nodes, **fields)
        times = []
        for _ in range(9):
            begin = time.process_time()
            ridgeline.plan(job)
            times.append(time.process_time() - begin)
        print(f"plan of {name} on {job.cluster.world_size} devices: {1e3 * min(times):.1f} ms, at most {bound_ms}")
        slow.append(1e3 * min(times) > bound_ms)
    return int(cold.ratio > BOUND or any(slow))


if __name__ == "__main__":
    sys.exit(main())
