"""The whole way on a laptop: plan, train, stop, resume under another layout, export, check, generate, plot.

    make quickstart        or, in an environment with ridgeline[plot]:        python examples/quickstart.py

Every step is a command that you can type yourself; it is printed before it runs. Everything lands in runs/quickstart.
"""

import json
import os
import pydoc_data.topics
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/quickstart")
JOB = "examples/quickstart/job.toml"
STOP_AT = 60


def ridgeline(*words: str) -> None:
    """Show a command and run it; its failure is ours."""
    print(f"\n$ ridgeline {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "ridgeline", *words], check=True)


def write_corpus(path: Path) -> None:
    """English prose that every Python carries: the topics of its manual, one document each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    topics = pydoc_data.topics.topics.values()
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics))


def plot_loss(metrics: Path, picture: Path) -> None:
    """The loss curve, and where the run was stopped and resumed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    plt.figure(figsize=(7, 4))
    plt.plot([row["step"] for row in rows], [row["loss"] for row in rows], label="training")
    checked = [row for row in rows if row.get("valid_loss") is not None]
    plt.plot([row["step"] for row in checked], [row["valid_loss"] for row in checked], "o", label="validation")
    plt.axvline(STOP_AT, color="grey", linestyle=":", label="stopped at tp2 x pp2, resumed at pp4")
    plt.xlabel("step")
    plt.ylabel("loss")
    plt.legend()
    plt.tight_layout()
    plt.savefig(picture, dpi=120)


def main() -> None:
    began = time.time()
    os.chdir(ROOT)
    shutil.rmtree(RUN, ignore_errors=True)

    ridgeline("plan", "qwen2.5-7b", "--cluster", "atlas-800t-a2")

    write_corpus(RUN / "text.jsonl")
    ridgeline("data", "bpe", str(RUN / "text.jsonl"), "--output", str(RUN / "tokenizer"), "--vocab-size", "4096")
    ridgeline("train", JOB, "--local", "4", "--until", str(STOP_AT))
    ridgeline("train", JOB, "--local", "4", "--layout.tp", "1", "--layout.pp", "4", "--layout.sp", "false")

    ridgeline("convert", str(RUN / "train"), str(RUN / "hf"))
    ridgeline("convert", str(RUN / "train"), "--check", str(RUN / "hf"))
    ridgeline(
        "generate", str(RUN / "hf"), "--prompt", "The statement", "--max-new-tokens", "80", "--temperature", "0.7"
    )
    plot_loss(RUN / "train" / "metrics.jsonl", RUN / "loss.png")
    print(f"\nloss curve: {RUN / 'loss.png'}\ndone in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
