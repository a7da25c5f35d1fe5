"""Raw files to blocks of documents, in the order of the files, with memory that does not grow with them.

    format     a document is                                     suffixes
    jsonl      one line, a JSON object with the text key         .jsonl
    json       one object of an array, or of one after another   .json
    txt        one line, one paragraph or the file               .txt
    csv        one row, the column named by the text key         .csv
    parquet    one row                                           .parquet
    arrow      one row of an IPC file or stream                  .arrow

The first four may be compressed (``.jsonl.gz``).
"""

import csv
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal, TypeAlias, cast

import attrs

from ridgeline.apps.runtime.data.blocks import Block, decode, parse_record, text_of
from ridgeline.apps.runtime.data.columnar import arrow_blocks, parquet_blocks
from ridgeline.apps.runtime.data.json_stream import json_values
from ridgeline.core.errors import DataError, nearest

Format: TypeAlias = Literal["jsonl", "json", "txt", "csv", "parquet", "arrow"]
DocumentUnit: TypeAlias = Literal["line", "paragraph", "file"]

SUFFIXES = MappingProxyType(
    {".jsonl": "jsonl", ".json": "json", ".txt": "txt", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
)
COMPRESSIBLE = frozenset({"jsonl", "json", "txt", "csv"})
BLOCK_BYTES = 1 << 20
LINE_LIMIT_BYTES = 1 << 30
TEXTS_PER_BLOCK = 4096


@attrs.frozen(kw_only=True)
class RawFile:
    """One input file and how to read it."""

    path: Path
    format: Format
    gzip: bool
    size_bytes: int


@attrs.frozen(kw_only=True)
class RawFiles:
    """The files that inputs name, in the order they are read, and those of their folders that no reader knows."""

    files: tuple[RawFile, ...]
    ignored: tuple[Path, ...]


@attrs.frozen
class _Source:
    """An open file: its bytes after decompression, and the compressed or plain bytes read so far."""

    stream: BinaryIO
    raw: BinaryIO
    start: int  # of the text, behind a byte order mark

    def tell(self) -> int:
        return self.raw.tell()


def find_files(inputs: Sequence[Path], *, format: Format | None = None) -> RawFiles:
    """List the files to read: those given, in their order, and those of a given folder and its subfolders, by path.

    Args:
        inputs: Files and folders.
        format: Of every file; None goes by suffix.

    Raises:
        DataError: An input does not exist, has a suffix no reader knows, or is a folder without a readable file.
    """
    if format is not None and format not in SUFFIXES.values():
        raise DataError(f"format={format!r}: unknown; {nearest(format, SUFFIXES.values())}")
    if not inputs:
        raise DataError("inputs=(): no file to read; give files or folders")
    files: list[RawFile] = []
    ignored: list[Path] = []
    for path in inputs:
        if path.is_dir():
            members = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
            found = [raw for p in members if (raw := _raw_file(p, format)) is not None]
            if not found:
                raise DataError(
                    f"input {str(path)!r}: the folder holds no file to read; known suffixes: {_known_suffixes()}"
                )
            files.extend(found)
            ignored.extend(sorted(set(members) - {raw.path for raw in found}))
        elif path.is_file():
            raw = _raw_file(path, format)
            if raw is None:
                raise DataError(
                    f"input {str(path)!r}: unknown suffix {''.join(path.suffixes[-2:])!r}; "
                    f"known: {_known_suffixes()}, or give the format"
                )
            files.append(raw)
        else:
            raise DataError(f"input {str(path)!r}: no such file or folder")
    return RawFiles(files=tuple(files), ignored=tuple(ignored))


def read_blocks(file: RawFile, *, text_key: str, document: DocumentUnit = "line") -> Iterator[Block]:
    """Cut a file into blocks of about a MiB that cover it in order.

    Args:
        file: The file.
        text_key: Field or column that holds the text.
        document: What one document of a txt file is.

    Raises:
        DataError: The file cannot be read, is empty, or is not what its format says.
    """
    if file.size_bytes == 0:
        raise DataError(f"{file.path}: is empty (0 bytes)")
    with _errors_name(file.path):
        match file.format:
            case "parquet":
                yield from parquet_blocks(file.path, text_key=text_key, size_bytes=file.size_bytes)
            case "arrow":
                yield from arrow_blocks(file.path, text_key=text_key, size_bytes=file.size_bytes)
            case _:
                with _opened(file) as source:
                    yield from _text_blocks(file, source, text_key=text_key, document=document)


def _text_blocks(file: RawFile, source: _Source, *, text_key: str, document: DocumentUnit) -> Iterator[Block]:
    name = str(file.path)
    match file.format, document:
        case "jsonl", _:
            return _line_blocks(source, name=name, kind="json_lines")
        case "json", _:
            return _json_blocks(source, name=name, text_key=text_key)
        case "csv", _:
            return _grouped(_csv_texts(source.stream, name=name, text_key=text_key), source, name=name, unit="line")
        case _, "line":
            return _line_blocks(source, name=name, kind="text_lines")
        case _, "paragraph":
            return _grouped(_paragraphs(source.stream, name=name), source, name=name, unit="line")
        case _:
            whole = decode(source.stream.read(), where=name)
            return _grouped([(1, whole)] if whole.strip() else [], source, name=name, unit="line")


def _line_blocks(source: _Source, *, name: str, kind: Literal["json_lines", "text_lines"]) -> Iterator[Block]:
    first, position = 1, 0
    while chunk := source.stream.read(BLOCK_BYTES):
        if not chunk.endswith(b"\n"):
            rest = source.stream.readline(LINE_LIMIT_BYTES)
            if len(rest) == LINE_LIMIT_BYTES:
                raise DataError(
                    f"{name} line {first + chunk.count(10)}: is longer than {LINE_LIMIT_BYTES} bytes; "
                    "is this a file of lines?"
                )
            chunk += rest
        yield Block(source=name, kind=kind, payload=chunk, first=first, read_bytes=source.tell() - position)
        first, position = first + chunk.count(b"\n"), source.tell()


def _json_blocks(source: _Source, *, name: str, text_key: str) -> Iterator[Block]:
    is_object = source.stream.read(4096).lstrip().startswith(b"{")
    source.stream.seek(source.start)
    first_line = source.stream.readline(64 * BLOCK_BYTES) if is_object else b""
    source.stream.seek(source.start)
    if is_object and _is_json(first_line):
        return _line_blocks(
            source, name=name, kind="json_lines"
        )  # one object a line, whatever the suffix: lines parse in parallel
    values = json_values(source.stream, name=name)
    texts = ((line, text_of(value, text_key, where=f"{name} line {line}")) for line, value in values)
    return _grouped(texts, source, name=name, unit="line")


def _is_json(line: bytes) -> bool:
    try:
        parse_record(decode(line, where=""), where="")
    except DataError:
        return False
    return True


def _csv_texts(stream: BinaryIO, *, name: str, text_key: str) -> Iterator[tuple[int, str]]:
    lines = (decode(raw, where=f"{name} line {number}") for number, raw in enumerate(stream, start=1))
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 KiB it allows
    try:
        rows = csv.reader(lines, strict=True)
        try:
            header = next(rows)
            if text_key not in header:
                raise DataError(f"{name} line 1: has no column text_key={text_key!r}; {nearest(text_key, header)}")
            column, start = header.index(text_key), rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{name} line {start}: expected {len(header)} fields as in the header, found {len(row)}; "
                        "mend or remove this row"
                    )
                if row:
                    yield start, row[column]
                start = rows.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{name} line {rows.line_num}: is not CSV: {error}; "
                "quote fields with double quotes and double the quotes inside"
            ) from error
    finally:
        csv.field_size_limit(limit)


def _paragraphs(stream: BinaryIO, *, name: str) -> Iterator[tuple[int, str]]:
    numbered = ((number, decode(raw, where=f"{name} line {number}")) for number, raw in enumerate(stream, start=1))
    for blank, lines in groupby(numbered, key=lambda line: not line[1].strip()):
        if not blank:
            paragraph = list(lines)
            yield paragraph[0][0], "".join(text for _, text in paragraph).rstrip("\r\n")


def _grouped(texts: Iterable[tuple[int, object]], source: _Source, *, name: str, unit: str) -> Iterator[Block]:
    """Gather texts into blocks of about ``BLOCK_BYTES`` characters."""
    position, characters = 0, 0
    group: list[tuple[int, object]] = []
    for number, text in texts:
        group.append((number, text))
        characters += len(text) if isinstance(text, str) else sum(map(len, cast("list[str]", text)))
        if characters >= BLOCK_BYTES or len(group) == TEXTS_PER_BLOCK:
            yield Block(source=name, kind="texts", payload=tuple(group), unit=unit, read_bytes=source.tell() - position)
            position, characters, group = source.tell(), 0, []
    if group:
        yield Block(source=name, kind="texts", payload=tuple(group), unit=unit, read_bytes=source.tell() - position)


@contextmanager
def _opened(file: RawFile) -> Iterator[_Source]:
    with file.path.open("rb") as raw:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if file.gzip else raw
        with closing(stream):
            start = 3 if stream.read(3) == b"\xef\xbb\xbf" else 0  # a byte order mark is no text
            stream.seek(start)
            yield _Source(stream, raw, start)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged or cut short: {error}; copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _raw_file(path: Path, format: Format | None) -> RawFile | None:
    compressed = path.suffix.lower() == ".gz"
    by_suffix = SUFFIXES.get(Path(path.stem).suffix.lower() if compressed else path.suffix.lower())
    chosen = format or cast("Format | None", by_suffix)
    if chosen is None or (compressed and chosen not in COMPRESSIBLE):
        return None
    return RawFile(path=path, format=chosen, gzip=compressed, size_bytes=path.stat().st_size)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _known_suffixes() -> str:
    return ", ".join(SUFFIXES) + " (and .gz of " + ", ".join(s for s, f in SUFFIXES.items() if f in COMPRESSIBLE) + ")"
