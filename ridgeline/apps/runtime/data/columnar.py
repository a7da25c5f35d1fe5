"""Parquet and Arrow files to blocks of texts, a batch of rows at a time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ridgeline.apps.runtime.data.blocks import Block
from ridgeline.core.errors import DataError, nearest

ROWS_PER_BLOCK = 512


def parquet_blocks(path: Path, *, text_key: str, size_bytes: int) -> Iterator[Block]:
    """The column ``text_key`` of a Parquet file.

    Raises:
        DataError: The file is damaged or lacks the column.
    """
    with _errors_name(path, "Parquet"), pq.ParquetFile(path) as file:
        _check_column(file.schema_arrow, text_key, path)
        bytes_per_row = size_bytes / max(1, file.metadata.num_rows)
        batches = file.iter_batches(batch_size=ROWS_PER_BLOCK, columns=[text_key], use_threads=False)
        columns = (batch.column(0) for batch in batches)
        yield from _blocks(((column, len(column) * bytes_per_row) for column in columns), path=path)


def arrow_blocks(path: Path, *, text_key: str, size_bytes: int) -> Iterator[Block]:
    """The column ``text_key`` of an Arrow IPC file, or of a stream, which is what ``datasets`` saves.

    Raises:
        DataError: The file is damaged or lacks the column.
    """
    with _errors_name(path, "Arrow IPC"), pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        _check_column(reader.schema, text_key, path)
        index = reader.schema.get_field_index(text_key)
        if isinstance(reader, pa.RecordBatchFileReader):
            batches = (reader.get_batch(i).column(index) for i in range(reader.num_record_batches))
            share = size_bytes / max(1, reader.num_record_batches)
            columns = ((column, share) for column in batches)
        else:
            columns = _stream_columns(reader, source, index)
        yield from _blocks((part for column, read in columns for part in _slices(column, read)), path=path)


def _stream_columns(
    reader: pa.RecordBatchStreamReader, source: pa.MemoryMappedFile, index: int
) -> Iterator[tuple[pa.Array, float]]:
    position = 0
    for batch in reader:
        yield batch.column(index), source.tell() - position
        position = source.tell()


def _slices(column: pa.Array, read_bytes: float) -> Iterator[tuple[pa.Array, float]]:
    for start in range(0, len(column), ROWS_PER_BLOCK):
        part = column.slice(start, ROWS_PER_BLOCK)
        yield part, read_bytes * len(part) / len(column)


def _blocks(columns: Iterable[tuple[pa.Array, float]], *, path: Path) -> Iterator[Block]:
    first = 1
    for column, read_bytes in columns:
        texts = tuple(enumerate(column.to_pylist(), start=first))
        first += len(texts)
        yield Block(source=str(path), kind="texts", payload=texts, unit="row", read_bytes=round(read_bytes))


def _check_column(schema: pa.Schema, text_key: str, path: Path) -> None:
    if text_key not in schema.names:
        raise DataError(f"{path}: has no column text_key={text_key!r}; {nearest(text_key, schema.names)}")
    if schema.names.count(text_key) > 1:
        raise DataError(f"{path}: has {schema.names.count(text_key)} columns text_key={text_key!r}; rename all but one")


@contextmanager
def _errors_name(path: Path, format: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: is no whole {format} file: {first_line}; write or copy it again") from error
