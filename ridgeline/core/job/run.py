"""What a job reads and writes: data, first weights, the run itself."""

from collections.abc import Iterator
from typing import Literal

from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, degree, many, real, reals, trait
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Source:
    """One corpus: the prefix of a ``.bin``/``.idx`` pair, or a raw file or folder; ``weight`` is its share."""

    path: str
    weight: float = real(1.0, above=0.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Data:
    """What is trained on.

    Attributes:
        sources: Corpora of the blend.
        split: Shares of training, validation and test.
        tokenizer: Folder of a Hugging Face tokenizer, or its ``tokenizer.json``.
        text_key: Field of a raw record that holds its text.
        cache: Folder for tokenised raw files and sample indices; None places it beside the run's output.
    """

    sources: tuple[Source, ...] = many()
    split: tuple[float, ...] = reals((0.969, 0.03, 0.001))
    tokenizer: str | None = None
    text_key: str = "text"
    cache: str | None = None
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if len(self.split) != 3 or min(self.split) < 0 or not sum(self.split) > 0:
            yield Problem("split", self.split, "must be three shares >= 0: training, validation, test")


@frozen(kw_only=True)
class Init:
    """Where the first weights come from: random, a Hugging Face folder (``hf``), or a saved step (``checkpoint``)."""

    hf: str | None = None
    checkpoint: str | None = None
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.hf and self.checkpoint:
            yield Problem("hf", self.hf, f"excludes checkpoint={self.checkpoint!r}", "keep one of the two")


@frozen(kw_only=True)
class Run:
    """How long to train, and what is written where.

    Attributes:
        steps: Optimizer steps of the whole run.
        output: Folder for checkpoints, logs and curves.
        save_every: Steps between checkpoints; None saves only at the end.
        keep_last: Checkpoints kept; None keeps all.
        async_save: Write checkpoints in the background.
        export_hf_every: Steps between exports to Hugging Face folders, each of them saved first; None exports nothing.
        log_every: Steps between log lines.
        valid_every, valid_steps: Validate every so many steps, over so many global batches.
        seed: Of initial weights, data order and dropout.
        deterministic: Let two runs give equal bits, at the cost of some speed; kernels that cannot are passed over.
        kernels: "strict" refuses plain torch on an npu where a kernel was meant; "auto" says so and goes on.
    """

    steps: int = at_least(1, default=1000)
    output: str = "runs"
    save_every: int | None = at_least(1, default=None)
    keep_last: int | None = at_least(1, default=None)
    async_save: bool = False
    export_hf_every: int | None = at_least(1, default=None)
    log_every: int = degree()
    valid_every: int | None = at_least(1, default=None)
    valid_steps: int = degree()
    seed: int = at_least(0, default=1234)
    deterministic: bool = trait(False)
    kernels: Literal["auto", "strict"] = "auto"
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Profile:
    """Steps whose every operation is timed, and what is kept beside its time.

    Attributes:
        start: Steps of the run before the first profiled one.
        end: Steps of the run up to and with the last one.
        ranks: Which ranks; -1 among them is all.
        level: How much an npu tells: ``level0`` its kernels, ``level1`` also its cores and collectives, ``level2`` also
            CANN's runtime, ``none`` nothing.
        cpu: What the host does.
        stack: The Python calls behind it.
        memory: Every allocation.
        shapes: Of the tensors of every operation.
        output: Folder; None places it beside the run's output.
    """

    start: int = at_least(0, default=10)
    end: int = at_least(1, default=12)
    ranks: tuple[int, ...] = many((0,))
    level: Literal["none", "level0", "level1", "level2"] = "level0"
    cpu: bool = False
    stack: bool = False
    memory: bool = False
    shapes: bool = False
    output: str | None = None
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.end <= self.start:
            yield Problem("end", self.end, f"must be > start={self.start}", f"use {self.start + 2}")
        if self.stack and not self.cpu:
            yield Problem("stack", True, "needs cpu, which the stacks are of", "set profile.cpu to true")
