"""Megatron's indexed corpus, ``PREFIX.bin`` (token ids) and ``PREFIX.idx`` (where each sequence and document lies).

The layout of ``PREFIX.idx``, little-endian::

    9s   magic               Q  version, 1           B  code of the ids' dtype
    Q    sequences           Q  document marks
    i4 * sequences           tokens of each sequence
    i8 * sequences           byte offset of each sequence in PREFIX.bin
    i8 * document marks      index of the sequence each document starts with, then the count of sequences

Source:
    NVIDIA/Megatron-LM core_v0.16.1, megatron/core/datasets/indexed_dataset.py, ``_IndexWriter`` and ``_IndexReader``.
"""

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import attrs
import numpy as np

from ridgeline.core.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = MappingProxyType(
    {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}
)
ENTRIES_PER_READ = 1 << 20


@attrs.frozen(kw_only=True)
class Corpus:
    """A corpus whose two files were found whole and in agreement.

    Attributes:
        prefix: Path of both files without their suffix.
        dtype: Of the token ids, ``"uint16"`` or ``"int32"``.
        documents: Documents, empty ones included.
        sequences: Sequences, which are what training samples are cut from; one for each document that is not empty
            unless its text was a list.
        tokens: Tokens of all sequences, ends of documents included.
    """

    prefix: Path
    dtype: str
    documents: int
    sequences: int
    tokens: int


@attrs.frozen
class CorpusFiles:
    """The open files of a corpus being written: ids, tokens per sequence (int32), sequences per document (int32)."""

    prefix: Path
    ids: BinaryIO
    sequence_lengths: BinaryIO
    document_lengths: BinaryIO

    def append(self, ids: bytes, sequence_lengths: bytes, document_lengths: bytes) -> None:
        """Add whole documents, given as the bytes of the three arrays."""
        with _writing(self.prefix):
            self.ids.write(ids)
            self.sequence_lengths.write(sequence_lengths)
            self.document_lengths.write(document_lengths)


def optimal_dtype(vocab_size: int) -> str:
    """The dtype Megatron stores the ids of a vocabulary in.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, megatron/core/datasets/indexed_dataset.py, ``DType.optimal_dtype``.

    Example:
        >>> optimal_dtype(65499), optimal_dtype(65500)
        ('uint16', 'int32')
    """
    return "uint16" if vocab_size < 65500 else "int32"


def with_suffix(prefix: Path, suffix: str) -> Path:
    """The file of a corpus; a prefix may itself hold dots.

    Example:
        >>> with_suffix(Path("qwen2.5_text_document"), ".idx").name
        'qwen2.5_text_document.idx'
    """
    return prefix.with_name(prefix.name + suffix)


@contextmanager
def corpus_writer(prefix: Path, *, dtype: str, overwrite: bool = False) -> Iterator[CorpusFiles]:
    """Files to append documents to, which become the corpus ``prefix`` when the block ends well, and else vanish.

    Nothing stands under the final names before it is complete and on disk; the ``.idx`` comes last. Memory does not
    grow with the corpus.

    Raises:
        DataError: The corpus exists and ``overwrite`` is False, or the disk refuses (full, not writable).
    """
    finals = [with_suffix(prefix, suffix) for suffix in (".bin", ".idx")]
    if not overwrite and any(path.exists() for path in finals):
        raise DataError(
            f"output_prefix={str(prefix)!r}: a corpus of this name exists; "
            "remove it, allow overwriting or choose another name"
        )
    with _writing(prefix):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.", dir=prefix.parent))
    try:
        parts = [folder / name for name in ("ids", "sequence_lengths", "document_lengths")]
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("wb")) for part in parts]
            yield CorpusFiles(prefix, *files)
            with _writing(prefix):
                for file in files:
                    file.flush()
                os.fsync(files[0].fileno())
        with _writing(prefix):
            _write_index(folder / "index", dtype=dtype, sequence_lengths=parts[1], document_lengths=parts[2])
            finals[1].unlink(missing_ok=True)  # an old index never meets a new .bin
            os.replace(parts[0], finals[0])
            os.replace(folder / "index", finals[1])
            sync_folder(prefix.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_corpus(prefix: Path) -> Corpus:
    """Read the index of a corpus and check both files against it.

    Args:
        prefix: Path of both files without their suffix.

    Raises:
        DataError: A file is missing, is not an index, is cut short or disagrees with the other, or the corpus is empty.
    """
    index_path, bin_path = with_suffix(prefix, ".idx"), with_suffix(prefix, ".bin")
    for path in (index_path, bin_path):
        if not path.is_file():
            raise DataError(f"data prefix {str(prefix)!r}: {path} does not exist; {_near_prefix(prefix)}")
    index_bytes, bin_bytes = index_path.stat().st_size, bin_path.stat().st_size
    if index_bytes < HEADER.size:
        raise _size_error(index_path, found=index_bytes, expected=HEADER.size, what="bytes for its header alone")
    with index_path.open("rb") as file:
        magic, version, code, sequences, marks = HEADER.unpack(file.read(HEADER.size))
    dtype = {number: name for name, number in DTYPE_CODES.items()}.get(code)
    if magic != MAGIC or version != 1 or dtype is None:
        raise DataError(
            f"{index_path}: is no Megatron index: expected magic {MAGIC!r}, version 1 and a dtype code of 1 to 8, "
            f"found {magic!r}, {version} and {code}; prepare the data again"
        )
    expected = HEADER.size + 12 * sequences + 8 * marks
    if index_bytes not in (
        expected,
        expected + sequences,
    ):  # the latter: one more byte a sequence, the mode of multimodal data
        raise _size_error(
            index_path,
            found=index_bytes,
            expected=expected,
            what=f"bytes for {sequences} sequences and {marks} document marks",
        )
    if sequences == 0 or marks < 2:
        raise DataError(f"{index_path}: the corpus holds no tokens; prepare it from an input that has text")
    lengths = sequence_lengths(index_path, sequences)
    documents = np.memmap(index_path, dtype="<i8", mode="r", offset=HEADER.size + 12 * sequences, shape=(marks,))
    if documents[0] != 0 or documents[-1] != sequences:
        raise DataError(
            f"{index_path}: its document marks run from {documents[0]} to {documents[-1]}, "
            f"expected 0 to {sequences}; the file is damaged"
        )
    tokens = int(lengths.sum(dtype=np.int64))
    if bin_bytes != tokens * np.dtype(dtype).itemsize:
        raise _size_error(
            bin_path,
            found=bin_bytes,
            expected=tokens * np.dtype(dtype).itemsize,
            what=f"bytes, {tokens} tokens of {dtype}",
        )
    return Corpus(prefix=prefix, dtype=dtype, documents=marks - 1, sequences=sequences, tokens=tokens)


def sequence_lengths(index_path: Path, sequences: int) -> np.ndarray:
    """Tokens of each sequence of an index: ``(sequences,), int32``, read from the file as needed."""
    return np.memmap(index_path, dtype="<i4", mode="r", offset=HEADER.size, shape=(sequences,))


def sync_folder(folder: Path) -> None:
    """Put the names of a folder on disk, after a rename in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_index(path: Path, *, dtype: str, sequence_lengths: Path, document_lengths: Path) -> None:
    itemsize = np.dtype(dtype).itemsize
    sequences, documents = sequence_lengths.stat().st_size // 4, document_lengths.stat().st_size // 4
    with path.open("wb") as index:
        index.write(HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], sequences, documents + 1))
        with sequence_lengths.open("rb") as lengths:
            shutil.copyfileobj(lengths, index)
        offset = 0
        for lengths in _int32_chunks(sequence_lengths):
            ends = offset + np.cumsum(lengths, dtype="<i8") * itemsize
            index.write((ends - lengths * np.int64(itemsize)).astype("<i8").tobytes())
            offset = int(ends[-1])
        index.write(np.zeros(1, dtype="<i8").tobytes())
        mark = 0
        for counts in _int32_chunks(document_lengths):
            marks = mark + np.cumsum(counts, dtype="<i8")
            index.write(marks.tobytes())
            mark = int(marks[-1])
        index.flush()
        os.fsync(index.fileno())


def _int32_chunks(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while chunk := file.read(4 * ENTRIES_PER_READ):
            yield np.frombuffer(chunk, dtype="<i4")


@contextmanager
def _writing(prefix: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"output_prefix={str(prefix)!r}: cannot be written: {error.strerror or error}; "
            "nothing was left under this name"
        ) from error


def _size_error(path: Path, *, found: int, expected: int, what: str) -> DataError:
    return DataError(
        f"{path}: is damaged or cut short: expected {expected} {what}, found {found} bytes; "
        "copy it again or prepare it again"
    )


def _near_prefix(prefix: Path) -> str:
    if prefix.suffix in (".bin", ".idx"):
        return f"leave the suffix out: {str(prefix.with_suffix(''))!r}"
    if not prefix.parent.is_dir():
        return f"the folder {str(prefix.parent)!r} does not exist either"
    known = sorted(path.name[: -len(".idx")] for path in prefix.parent.glob("*.idx"))
    close = get_close_matches(prefix.name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {str(prefix.parent / close[0])!r}?"
    return f"prefixes there: {', '.join(known)}" if known else f"{str(prefix.parent)!r} holds no .idx file"
