"""Training straight from raw files: each set of them is tokenised once, by rank 0, and found again next time.

An entry of the cache is a folder named by the digest of all that decides its bytes; ``source.json`` in it says of what.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch.distributed as dist
from rich.console import Console

from ridgeline.apps.runtime.data.indexed import Corpus, open_corpus, with_suffix
from ridgeline.apps.runtime.data.prepare import prepare_pretrain
from ridgeline.apps.runtime.data.rank_zero import check_visible, on_rank_zero
from ridgeline.apps.runtime.data.reading import DocumentUnit, Format, find_files
from ridgeline.apps.runtime.data.tokenizer import load_tokenizer
from ridgeline.core.errors import DataError


@attrs.frozen(kw_only=True)
class Tokenising:
    """How raw files become ids; the arguments of ``prepare_pretrain`` of the same names."""

    tokenizer: Path
    text_key: str = "text"
    append_eod: bool = True
    format: Format | None = None
    document: DocumentUnit = "line"
    eod_token: str | None = None
    special_tokens: bool = False


def source_corpus(
    source: Path,
    *,
    cache: Path,
    tokenising: Tokenising | None,
    workers: int | None = None,
    progress: Console | None = None,
    group: dist.ProcessGroup | None = None,
) -> Corpus:
    """Open the corpus a source names, on every rank: a prefix as it stands, raw files through the cache.

    Args:
        source: Prefix of a ``.bin``/``.idx`` pair, or a raw file or folder.
        cache: Folder of tokenised raw files, on storage all ranks share.
        tokenising: How raw files are tokenised; None where the job names no tokenizer.
        workers: Processes that tokenise, as in ``prepare_pretrain``.
        progress: Where rank 0 draws a progress bar.
        group: A group that moves objects through host memory (gloo); None takes the default one.

    Raises:
        DataError: The source is neither, is damaged, or is raw and there is no tokenizer; or the cache is not shared.
    """
    is_prefix = with_suffix(source, ".idx").is_file() or with_suffix(source, ".bin").is_file()
    if is_prefix or not source.exists():
        corpus = on_rank_zero(lambda: open_corpus(source), group=group)
        check_visible(with_suffix(corpus.prefix, ".idx"), what="data.sources", group=group)
        return corpus
    if tokenising is None:
        raise DataError(
            f"data source {str(source)!r}: raw text needs a tokenizer; "
            "set data.tokenizer to a Hugging Face folder, or prepare the data first"
        )
    return tokenised_cache(
        [source], cache=cache, tokenising=tokenising, workers=workers, progress=progress, group=group
    )


def tokenised_cache(
    inputs: Sequence[Path],
    *,
    cache: Path,
    tokenising: Tokenising,
    workers: int | None = None,
    progress: Console | None = None,
    group: dist.ProcessGroup | None = None,
) -> Corpus:
    """The corpus of raw files, tokenised now by rank 0 unless it was before.

    A file counts as the same while its path, size and time of change are. Two jobs that tokenise at once do it
    twice, and end with the same entry.

    Raises:
        DataError: As ``prepare_pretrain``, on every rank; or the cache is not shared between the ranks.
    """
    corpus = on_rank_zero(
        lambda: _tokenise_once(inputs, cache=cache, tokenising=tokenising, workers=workers, progress=progress),
        group=group,
    )
    check_visible(with_suffix(corpus.prefix, ".idx"), what="data.cache", group=group)
    return corpus


def _tokenise_once(
    inputs: Sequence[Path], *, cache: Path, tokenising: Tokenising, workers: int | None, progress: Console | None
) -> Corpus:
    identity = _identity(inputs, tokenising)
    text = json.dumps(identity, indent=2, sort_keys=True)
    entry = cache / hashlib.sha256(text.encode()).hexdigest()[:32]
    prefix = entry / f"corpus_{tokenising.text_key}_document"
    if entry.is_dir():
        return _cached(entry, prefix)
    folder = cache / f".{entry.name}.{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        prepare_pretrain(inputs, folder / "corpus", workers=workers, progress=progress, **attrs.asdict(tokenising))
        (folder / "source.json").write_text(text + "\n", encoding="utf-8")
        try:
            os.rename(folder, entry)
        except OSError:
            if not entry.is_dir():  # else another job was faster, with the same bytes
                raise
    except OSError as error:
        raise DataError(
            f"data.cache={str(cache)!r}: cannot be written: {error.strerror or error}; "
            "choose another folder or free some room"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _cached(entry, prefix)


def _identity(inputs: Sequence[Path], tokenising: Tokenising) -> dict[str, object]:
    files = [(raw, raw.path.stat()) for raw in find_files(inputs, format=tokenising.format).files]
    options = attrs.asdict(tokenising, filter=attrs.filters.exclude("tokenizer", "eod_token"))
    return {
        "files": [[str(raw.path.resolve()), raw.format, stat.st_size, stat.st_mtime_ns] for raw, stat in files],
        "tokenizer": load_tokenizer(tokenising.tokenizer, eod_token=tokenising.eod_token).digest,
        "options": options,
    }


def _cached(entry: Path, prefix: Path) -> Corpus:
    try:
        return open_corpus(prefix)
    except DataError as error:
        raise DataError(f"{error}; it lies in the cache: remove {str(entry)!r} and it is made again") from error
