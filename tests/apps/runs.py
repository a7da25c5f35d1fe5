"""Small training runs for ranks, from plain arguments."""

import io
import os
import pydoc_data.topics
import signal
import threading
import time
from pathlib import Path

import attrs

from ridgeline.core.codec import dumps, loads
from ridgeline.core.job import Batch, Data, Job, Optimizer, Precision, Run, Source
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Block, Mlp, ModelSpec, Repeat
from ridgeline.parallel.clusters import cluster_preset

VOCAB = 512


def tiny_job(folder, *, output="run", world_size=2, layout=None, **run):
    """A job that trains a tiny model on the documentation of Python, in ``folder``."""
    mixer = Attention(heads=4, kv_heads=2, head_dim=8, qkv_bias=True)
    block = Block(mixer=mixer, feed_forward=Mlp(ffn_hidden=64))
    model = ModelSpec(
        name="tiny",
        family="qwen2",
        vocab_size=VOCAB,
        hidden=32,
        max_position=64,
        blocks=(Repeat(block=block, count=4),),
        tied_embeddings=True,
    )
    folder = Path(folder)
    return Job(
        name="tiny",
        model=model,
        cluster=cluster_preset("cpu", devices_per_node=world_size),
        batch=Batch(seq_len=32, mbs=2, gbs=8),
        layout=layout or Layout(),
        precision=Precision(params="fp32"),
        optimizer=Optimizer(lr=1e-3, warmup_steps=2),
        data=Data(
            sources=(Source(path=str(folder / "text.txt")),),
            tokenizer=str(folder / "tokenizer"),
            split=(0.9, 0.1, 0.0),
            cache=str(folder / "cache"),
        ),
        run=Run(output=str(folder / output), **{"steps": 8, "save_every": 3, "seed": 7, **run}),
    )


def text_of(job):
    return dumps(job)


def prepare(folder):
    """Write a text and train a tokenizer on it, once."""
    from ridgeline.apps.runtime.data.bpe import train_bpe

    text = Path(folder) / "text.txt"
    topics = pydoc_data.topics.topics
    text.write_text("\n".join(line for name in sorted(topics)[:12] for line in topics[name].split("\n\n")))
    return train_bpe([text], vocab_size=VOCAB, out=Path(folder) / "tokenizer").vocab_size


def train_job(job_text, until=None):
    """Train; how it ended, and what rank 0 showed."""
    from rich.console import Console

    from ridgeline.apps.runtime.train import train

    shown = io.StringIO()
    trained = train(loads(job_text, Job), until=until, console=Console(file=shown, width=200))
    return {**attrs.asdict(trained), "shown": shown.getvalue()}


def train_until_signal(job_text, after_step):
    """Train; rank 1 alone gets SIGTERM once so many steps are in the log."""
    from torch import distributed

    from ridgeline.apps.runtime.metrics import FILE, read_metrics

    if distributed.get_rank() == 1:
        path = Path(loads(job_text, Job).run.output) / FILE

        def ask():
            while len(read_metrics(path)) < after_step:
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=ask, daemon=True).start()
    return train_job(job_text)


def failure_of(job_text):
    """Train, which fails: the kind of error, what a person is told, and the exit code."""
    from ridgeline.apps.failures import explain

    try:
        train_job(job_text)
    except Exception as error:
        return attrs.astuple(explain(error))
    return None


def failure_on_full_disk(job_text, limit_bytes):
    """As ``failure_of``, where no file can grow beyond a limit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        return failure_of(job_text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def command(*tokens):
    """Run a command here: its exit code, and what it said."""
    import contextlib

    from ridgeline.apps.cli import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(tokens)
    return code, out.getvalue(), err.getvalue()


def command_told(words, *tokens):
    """Run a command here that reads its standard input."""
    from unittest import mock

    with mock.patch("sys.stdin", io.StringIO(words)):
        return command(*tokens)
