"""Preset -> transforms -> plan -> lower, in a page: the Python API is the first interface.

Run it: ``python examples/compose.py`` (milliseconds, no device). ``ridgeline train`` runs what it lowers.
"""

import ridgeline as rl


def main() -> None:
    change = rl.compose(
        rl.with_layout(tp=2, pp=2, sp=True),
        rl.resize(seq_len=4096, gbs=128),
        rl.recompute("selective"),
    )
    plan = rl.plan(change(rl.preset("qwen2.5-7b", cluster="atlas-800t-a2")))
    print(plan.stages)
    seconds, gib = plan.time.step_us / 1e6, plan.peak.total_bytes / 2**30
    print(f"step {seconds:.2f} s, MFU {plan.time.mfu_full:.1%}, peak {gib:.1f} GiB")
    program = rl.lower(plan, rank=5)
    print(f"rank {program.rank}: {program.coords}, first actions {' '.join(map(str, program.actions[:6]))}")


if __name__ == "__main__":
    main()
