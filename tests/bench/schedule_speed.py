"""Every schedule generated for times of its own, proved and simulated: CPU time for 16 ranks and 64 microbatches."""

import sys
import time

from ridgeline.parallel.schedules.known import SCHEDULES
from ridgeline.parallel.schedules.survey import Even, even_timeline
from ridgeline.parallel.validate import check_schedule

BOUND_MS = 50.0
PIPELINE = Even(pp=16, num_microbatches=64, input_us=1.2, weight_us=0.8, p2p_us=0.05)


def main() -> int:
    worst = 0.0
    for name in SCHEDULES:
        times, proofs = [], []
        for _ in range(9):
            begin = time.process_time()
            timeline = even_timeline(name, PIPELINE)
            made = time.process_time()
            check_schedule(timeline.schedule)
            times.append(1e3 * (made - begin))
            proofs.append(1e3 * (time.process_time() - made))
        actions = sum(map(len, timeline.schedule.ranks))
        print(
            f"{name}: {actions} actions generated and simulated in {min(times):.1f} ms, proved in {min(proofs):.1f} ms",
            flush=True,
        )
        worst = max(worst, min(times))
    print(f"slowest {worst:.1f} ms, at most {BOUND_MS}")
    return int(worst > BOUND_MS)


if __name__ == "__main__":
    sys.exit(main())
