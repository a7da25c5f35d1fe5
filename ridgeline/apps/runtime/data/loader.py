"""Microbatches of a dp rank in the order training takes them, from any step on."""

from collections.abc import Iterator, Sized
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from ridgeline.apps.runtime.data.packing import Microbatch, Packing, assemble
from ridgeline.apps.runtime.data.sampling import Slice, run_samples
from ridgeline.core.errors import DataError


def microbatches(
    dataset: Dataset,
    part: Slice,
    *,
    consumed_samples: int,
    stop_samples: int,
    packing: Packing,
    eod: int,
    vocab_size: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Microbatch]:
    """Read this rank's microbatches of whole steps, one after another.

    Two calls with the same arguments give the same microbatches; one that starts later gives the rest of an earlier
    one, without reading what comes before. The global random state is not touched.

    Args:
        dataset: Samples by index, as ``build_datasets`` gives them.
        part: The rank's part of a step.
        consumed_samples: Samples of all ranks before the first microbatch.
        stop_samples: Samples of all ranks at the end of the run.
        packing: Whether the documents of a sample are kept apart.
        eod: Id that ends a document.
        vocab_size: Ids the model has an embedding for; None checks nothing.
        workers: Processes that read ahead; 0 reads in this one, when asked.
        prefetch: Microbatches each worker keeps ready.

    Raises:
        DataError: The dataset ends before ``stop_samples``, or holds an id the model does not know.
    """
    assert isinstance(dataset, Sized)
    if len(dataset) < stop_samples:
        raise DataError(
            f"the dataset holds {len(dataset)} samples, but the run takes {stop_samples}; "
            "build it with at least so many"
        )
    loader = DataLoader(
        dataset,
        batch_sampler=map(list, run_samples(part, consumed_samples=consumed_samples, stop_samples=stop_samples)),
        collate_fn=partial(assemble, packing=packing, eod=eod, vocab_size=vocab_size),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        generator=torch.Generator(),  # else the loader draws its seed from the global generator, which dropout uses
    )
    return iter(loader)
