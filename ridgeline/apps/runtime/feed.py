"""The microbatches of a job: its corpora opened or tokenised, its samples indexed, and read from any step on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
from rich.console import Console
from torch import distributed

from ridgeline.apps.runtime.data.cache import Tokenising, source_corpus
from ridgeline.apps.runtime.data.datasets import Datasets, Samples, SharedBlend, WeightedCorpus, build_datasets
from ridgeline.apps.runtime.data.loader import microbatches
from ridgeline.apps.runtime.data.packing import Microbatch
from ridgeline.apps.runtime.data.sampling import Slice
from ridgeline.apps.runtime.data.tokenizer import check_eod, check_vocabulary, load_tokenizer
from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.job import Job
from ridgeline.models.program import RankProgram

NO_EOD = -1
"""Ends no document: prepared corpora without a tokenizer are read as one stream."""


@attrs.frozen(kw_only=True, eq=False)
class Feed:
    """What a rank trains on.

    Attributes:
        train: The rest of the run's microbatches after so many consumed samples.
        valid: The microbatches of a validation, the same each time; None where nothing is validated.
    """

    train: Callable[[int], Iterator[Microbatch]]
    valid: Callable[[], Iterator[Microbatch]] | None


def open_feed(
    program: RankProgram, *, group: distributed.ProcessGroup, console: Console | None = None, workers: int = 0
) -> Feed:
    """Open a job's data on every rank; raw files are tokenised, once, by rank 0.

    Args:
        program: Of this rank.
        group: Through host memory.
        console: Where rank 0 draws the progress of tokenising.
        workers: Processes that read ahead.

    Raises:
        SpecError: The job names no data.
        DataError: A file or the tokenizer cannot be used, or does not fit the model.
    """
    job, data = program.job, program.job.data
    if not data.sources:
        way_out = "give a .bin/.idx prefix or text: --data.sources PATH"
        raise SpecError(Problem("data.sources", data.sources, "must name at least one corpus to train on", way_out))
    eod = _checked_eod(job)
    datasets = _datasets(job, eod=eod, group=group, console=console)
    part = Slice(mbs=job.batch.mbs, gbs=job.batch.gbs, dp_rank=program.data.dp_rank, dp=program.data.dp)

    def read(dataset: object, consumed: int, stop: int) -> Iterator[Microbatch]:
        return microbatches(
            dataset,  # pyright: ignore[reportArgumentType]  None only where nothing was asked for
            part,
            consumed_samples=consumed,
            stop_samples=stop,
            packing=job.batch.packing,
            eod=eod,
            vocab_size=job.model.vocab_size,
            workers=workers,
        )

    samples = _samples(job)
    return Feed(
        train=lambda consumed: read(datasets.train, consumed, samples.train),
        valid=(lambda: read(datasets.valid, 0, samples.valid)) if samples.valid else None,
    )


def _samples(job: Job) -> Samples:
    valid = job.run.valid_steps * job.batch.gbs if job.run.valid_every else 0
    return Samples(train=job.run.steps * job.batch.gbs, valid=valid)


def _checked_eod(job: Job) -> int:
    if job.data.tokenizer is None:
        if job.batch.packing == "eod_reset":
            rule = "needs a tokenizer, whose end of document keeps documents apart"
            raise SpecError(Problem("batch.packing", job.batch.packing, rule, "set data.tokenizer"))
        return NO_EOD
    tokenizer = load_tokenizer(Path(job.data.tokenizer))
    check_vocabulary(tokenizer, job.model.vocab_size)
    return check_eod(tokenizer)


def _datasets(job: Job, *, eod: int, group: distributed.ProcessGroup, console: Console | None) -> Datasets:
    data = job.data
    cache = Path(data.cache) if data.cache else Path(job.run.output) / "cache"
    tokenising = Tokenising(tokenizer=Path(data.tokenizer), text_key=data.text_key) if data.tokenizer else None
    corpora = tuple(
        WeightedCorpus(
            corpus=source_corpus(Path(source.path), cache=cache, tokenising=tokenising, progress=console, group=group),
            weight=source.weight,
        )
        for source in data.sources
    )
    train, valid, test = data.split
    return build_datasets(
        SharedBlend(corpora=corpora, split=(train, valid, test)),
        samples=_samples(job),
        seq_len=job.batch.seq_len,
        seed=job.run.seed,
        eod=eod,
        vocab_size=job.model.vocab_size,
        cache=cache,
        group=group,
    )
