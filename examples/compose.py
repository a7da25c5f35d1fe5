"""Preset -> transforms -> plan -> lower -> train, in a page: the Python API is the first interface.

Run it: ``python examples/compose.py`` (one process, a CPU, under a minute).
"""

import json
import os
import pydoc_data.topics
import tempfile
from pathlib import Path

import ridgeline as rl

SMALL = {"preset": "qwen2.5-0.5b", "hidden": 64, "vocab_size": 512, "max_position": 256}
ATTENTION = rl.Attention(heads=4, kv_heads=2, head_dim=16, qkv_bias=True)
BLOCK = rl.Block(mixer=ATTENTION, feed_forward=rl.Mlp(ffn_hidden=176))


def big_job() -> rl.Job:
    """Qwen2.5-7B on one node, composed of a preset and transforms."""
    change = rl.compose(
        rl.with_layout(tp=2, pp=2, sp=True),
        rl.resize(seq_len=4096, gbs=128),
        rl.recompute("selective"),
    )
    return change(rl.preset("qwen2.5-7b", cluster="atlas-800t-a2"))


def small_job(folder: Path) -> rl.Job:
    """The same family at a size that trains here, on real text: described as a job file would."""
    from ridgeline.apps.runtime.data.bpe import train_bpe

    text = folder / "topics.jsonl"
    text.write_text("".join(json.dumps({"text": topic}) + "\n" for topic in pydoc_data.topics.topics.values()))
    tokenizer = train_bpe([text], vocab_size=512, out=folder / "tokenizer")
    job = rl.job_of(
        {
            "model": {**SMALL, "blocks": [rl.Repeat(block=BLOCK, count=4)]},
            "cluster": {"preset": "cpu", "devices_per_node": 1},
            "precision": {"params": "fp32"},
            "batch": {"seq_len": 128, "gbs": 1},
            "data": {"sources": [str(text)], "tokenizer": str(tokenizer.path)},
            "run": {"steps": 5, "output": str(folder / "run")},
        }
    )
    return rl.compose(rl.reduce_layers(2), rl.resize(gbs=4, mbs=2))(job)


def main() -> None:
    plan = rl.plan(big_job())
    print(plan.stages)
    seconds, gib = plan.time.step_us / 1e6, plan.peak.total_bytes / 2**30
    print(f"step {seconds:.2f} s, MFU {plan.time.mfu_full:.1%}, peak {gib:.1f} GiB")
    program = rl.lower(plan, rank=5)
    print(f"rank {program.rank}: {program.coords}, first actions {' '.join(map(str, program.actions[:6]))}")

    from ridgeline.apps.runtime.train import train

    with tempfile.TemporaryDirectory() as folder:
        trained = train(small_job(Path(folder)))
    print(f"trained to step {trained.step}, loss {trained.loss:.3f}")


if __name__ == "__main__":
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # before torch is imported, where Ascend's software is missing
    main()
