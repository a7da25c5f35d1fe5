"""Planning how a model of 671 billion parameters goes from one layout of 1,024 ranks to another."""

import sys
import time

from ridgeline.checkpoint.optimizer_shards import optimizer_holders
from ridgeline.checkpoint.ranks import weight_holders
from ridgeline.checkpoint.reshard import reshard
from ridgeline.core.job import Batch, Job
from ridgeline.core.layout import Layout
from ridgeline.core.params import num_params
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan

RANKS = 1024
BOUND_S = 2.0
LAYOUTS = (
    Layout(tp=2, pp=16, ep=32, sp=True, noop_layers=(61, 62, 63)),
    Layout(tp=4, pp=8, vpp=2, ep=16, etp=2, sp=True, noop_layers=(61, 62, 63)),
)


def main() -> int:
    model, cluster = model_preset("deepseek-v3"), cluster_preset("cpu", devices_per_node=RANKS)
    batch = Batch(seq_len=4096, mbs=1, gbs=4096)
    jobs = [Job(model=model, cluster=cluster, batch=batch, layout=layout) for layout in LAYOUTS]
    slowest = 0.0
    for what, holders_of in (("weights", weight_holders), ("optimizer shards", optimizer_holders)):
        begin = time.process_time()
        copies = reshard(*(holders_of(plan(job)) for job in jobs)).copies
        seconds = time.process_time() - begin
        print(
            f"reshard of {what} of {num_params(model) / 1e9:.0f}B parameters, {RANKS} to {RANKS} ranks: "
            f"{copies} copies planned in {seconds:.2f} s",
            flush=True,
        )
        slowest = max(slowest, seconds)
    print(f"each: at most {BOUND_S} s")
    return int(slowest > BOUND_S)


if __name__ == "__main__":
    sys.exit(main())
