"""Raw text to a Megatron corpus: read in order, tokenise in parallel, write in order."""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import attrs
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ridgeline.apps.runtime.data.blocks import Block
from ridgeline.apps.runtime.data.encode import Encoded, Encoder, encode_block, start_worker
from ridgeline.apps.runtime.data.indexed import Corpus, corpus_writer, open_corpus, optimal_dtype
from ridgeline.apps.runtime.data.reading import DocumentUnit, Format, RawFiles, find_files, read_blocks
from ridgeline.apps.runtime.data.tokenizer import TextTokenizer, check_eod, load_tokenizer
from ridgeline.core.errors import DataError

BLOCKS_IN_FLIGHT_PER_WORKER = 4
BYTES_WORTH_A_WORKER = 4 << 20  # below it a process takes longer to start than to work


@attrs.frozen(kw_only=True)
class PreparedCorpus:
    """What a preparation wrote, and from what.

    Attributes:
        corpus: The corpus, read back.
        files: The files read, in order.
        ignored: Files of input folders that no reader knows.
        source_bytes: Size of ``files`` together.
    """

    corpus: Corpus
    files: tuple[Path, ...]
    ignored: tuple[Path, ...]
    source_bytes: int


def prepare_pretrain(
    inputs: Sequence[Path],
    output_prefix: Path,
    *,
    tokenizer: Path,
    text_key: str = "text",
    append_eod: bool = True,
    workers: int | None = None,
    format: Format | None = None,
    document: DocumentUnit = "line",
    eod_token: str | None = None,
    special_tokens: bool = False,
    overwrite: bool = False,
    progress: Console | None = None,
) -> PreparedCorpus:
    """Tokenise raw files into ``OUTPUT_PREFIX_text_document.bin`` and ``.idx``.

    The bytes are those of Megatron-LM's ``tools/preprocess_data.py``, and the same for any number of workers. In the
    end both files stand complete under their names, or neither does.

    Args:
        inputs: Files and folders of jsonl, json, txt, csv, parquet and arrow.
        output_prefix: Start of the output's path; ``_{text_key}_document`` is appended, as Megatron does.
        tokenizer: Local Hugging Face folder, or ``tokenizer.json``.
        text_key: Field or column that holds the text.
        append_eod: Whether each document that is not empty ends with the end-of-document token.
        workers: Processes that tokenise; 1 stays in this one; None takes what the input is worth, at most the CPUs.
            More than one need a main script that can be imported (``if __name__ == "__main__":``).
        format: Of every file; None goes by suffix.
        document: What one document of a txt file is.
        eod_token: End-of-document token; None takes the tokenizer's end of sequence.
        special_tokens: Whether the tokenizer adds its own tokens to each text, as Megatron-LM does with
            ``--tokenizer-hf-include-special-tokens``.
        overwrite: Whether an existing corpus of this name is replaced, once the new one is complete.
        progress: Where a progress bar is drawn; None draws none.

    Raises:
        DataError: An input, the tokenizer or the output cannot be used; what, where and the way out are named.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, tools/preprocess_data.py.
    """
    if Path(text_key).name != text_key:
        raise DataError(f"text_key={text_key!r}: names the output files, so it must be a plain name; rename the field")
    found = find_files(inputs, format=format)
    loaded = load_tokenizer(tokenizer, eod_token=eod_token)
    total_bytes = sum(file.size_bytes for file in found.files)
    processes = _worker_count(workers, source_bytes=total_bytes)
    prefix = output_prefix.with_name(f"{output_prefix.name}_{text_key}_document")
    blocks = (block for file in found.files for block in read_blocks(file, text_key=text_key, document=document))
    with (
        tempfile.TemporaryDirectory(prefix="ridgeline-tokenizer-") as folder,
        _progress_bar(progress, total_bytes) as advance,
    ):
        encoder = _encoder(
            loaded,
            Path(folder),
            text_key=text_key,
            eod=check_eod(loaded) if append_eod else None,
            special_tokens=special_tokens,
        )
        with corpus_writer(prefix, dtype=encoder.dtype, overwrite=overwrite) as output:
            tokens = 0
            for encoded in encode_blocks(blocks, encoder, workers=processes):
                output.append(encoded.ids, encoded.sequence_lengths, encoded.document_lengths)
                tokens += len(encoded.ids)
                advance(encoded.read_bytes)
            if tokens == 0:
                raise DataError(f"{_named(found)}: no text was found; expected at least one document that is not empty")
    return PreparedCorpus(
        corpus=open_corpus(prefix),
        files=tuple(file.path for file in found.files),
        ignored=found.ignored,
        source_bytes=total_bytes,
    )


def encode_blocks(blocks: Iterable[Block], encoder: Encoder, *, workers: int) -> Iterator[Encoded]:
    """Encode blocks in worker processes and give them back in order, with a bounded number of them under way.

    Raises:
        DataError: A document is broken (the first in order), or a worker process died.
    """
    if workers == 1:
        yield from (encode_block(block, encoder) for block in blocks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        under_way: deque[Future[Encoded]] = deque()
        for block in blocks:
            under_way.append(pool.submit(encode_block, block, encoder))
            if len(under_way) >= BLOCKS_IN_FLIGHT_PER_WORKER * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"workers={workers}: a tokenising process died, for want of memory or because the main script cannot be "
            "imported anew; use fewer workers, 1 stays in this process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encoder(
    tokenizer: TextTokenizer, folder: Path, *, text_key: str, eod: int | None, special_tokens: bool
) -> Encoder:
    dtype = optimal_dtype(tokenizer.vocab_size)
    if tokenizer.highest_id > np.iinfo(dtype).max:
        raise DataError(
            f"tokenizer={str(tokenizer.path)!r}: its ids reach {tokenizer.highest_id}, but its "
            f"{tokenizer.vocab_size} tokens make Megatron store them as {dtype}; number its tokens without holes"
        )
    backend = tokenizer.backend_json
    place = tokenizer.path if tokenizer.path.is_dir() else tokenizer.path.parent
    if backend is not None:
        place = folder / "tokenizer.json"
        place.write_text(backend, encoding="utf-8")
    return Encoder(
        tokenizer=place,
        special_tokens=special_tokens,
        split_special_tokens=bool(tokenizer.hf.split_special_tokens),
        eod=eod,
        text_key=text_key,
        dtype=dtype,
    )


def _worker_count(workers: int | None, *, source_bytes: int) -> int:
    if workers is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(cpus, source_bytes // BYTES_WORTH_A_WORKER))
    if workers < 1:
        raise DataError(f"workers={workers}: must be >= 1")
    return workers


def _named(found: RawFiles) -> str:
    names = [str(file.path) for file in found.files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _progress_bar(console: Console | None, total_bytes: int) -> Iterator[Callable[[int], None]]:
    if console is None:
        yield lambda read_bytes: None
        return
    columns = (TextColumn("tokenising"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("tokenising", total=total_bytes)
        yield lambda read_bytes: bar.advance(task, read_bytes)
