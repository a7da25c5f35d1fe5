"""Preset -> transforms -> plan -> lower -> train, in a page: the Python API is the first interface.

Run it: ``python examples/compose.py`` (one process, a CPU, under a minute).
"""

import os
import pydoc_data.topics
import tempfile
from pathlib import Path

import ridgeline as rl


def big_job() -> rl.Job:
    """Qwen2.5-7B on one node, composed of a preset and transforms."""
    return rl.compose(
        rl.with_layout(tp=2, pp=2, sp=True),
        rl.resize(seq_len=4096, gbs=128),
        rl.recompute(rl.SelectiveRecompute()),
    )(rl.preset("qwen2.5-7b", cluster="atlas-800t-a2"))


def small_job(folder: Path) -> rl.Job:
    """The same family cut to a size that trains on this machine, on real text."""
    from ridgeline.apps.runtime.data import train_bpe

    text = folder / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values()))
    tokenizer = train_bpe([text], 4096, folder / "tokenizer")
    shrink = rl.compose(
        rl.reduce_layers(2),
        rl.reduce_width(hidden=128, heads=4, kv_heads=2, ffn_hidden=352, vocab_size=4096),
        rl.resize(seq_len=128, mbs=2, gbs=8),
        rl.with_run(steps=5, output=str(folder / "run"), seed=7),
        rl.with_data(sources=(rl.Source(path=str(text)),), tokenizer=str(tokenizer)),
    )
    return shrink(rl.preset("qwen2.5-7b", cluster="cpu"))


def main() -> None:
    plan = rl.plan(big_job())
    print(plan.stages)
    print(
        f"step {plan.time.step_s:.2f} s, MFU {plan.time.mfu:.1%}, peak {max(m.total for m in plan.memory) / 2**30:.1f} GiB"
    )
    program = rl.lower(plan, rank=5)
    print(f"rank {program.rank}: {program.coords}, first actions {' '.join(map(str, program.actions[:6]))}")

    from ridgeline.apps.runtime.train import train

    with tempfile.TemporaryDirectory() as folder:
        result = train(small_job(Path(folder)))
    print(f"trained to step {result.step}, loss {result.loss:.3f}")


if __name__ == "__main__":
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    main()
