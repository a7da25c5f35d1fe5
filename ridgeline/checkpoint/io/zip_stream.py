"""A zip of uncompressed records written as their bytes come, of any size, as torch reads it.

Each record's data is aligned to 64 bytes. Checksums are computed while the bytes pass, and put into the headers behind
them; so memory holds no record, and no byte is read twice.

Source:
    PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 and 4.3.15 (64-bit
    end), 4.3.16 (end), 4.5.3 (64-bit sizes); torch 2.13, caffe2/serialize/inline_container.cc (padding).
"""

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple, TypeAlias

Bytes: TypeAlias = bytes | memoryview

ALIGNMENT = 64
LARGE = 0xFFFFFFFF
"""From here on a size or a position takes 64 bits."""

_ELSEWHERE = 0xFFFFFFFF  # what stands in 32 bits where 64 follow

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END_64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<IIQI")
_SIZES_64 = struct.Struct("<HHQQ")
_EXTRA = struct.Struct("<HH")
_PADDING_ID = 0x4246  # "FB", as torch marks its own padding
_CHECKSUM_AT = 14


class Record(NamedTuple):
    """One file inside a zip: its name, its size, and its bytes, in chunks."""

    name: str
    size: int
    chunks: Iterable[Bytes]


class Place(NamedTuple):
    """Where the bytes of a record begin in the stream, and their CRC-32."""

    start: int
    crc32: int


class _Entry(NamedTuple):
    name: bytes
    size: int
    checksum: int
    position: int
    start: int


def write_zip(stream: BinaryIO, records: Iterable[Record]) -> dict[str, Place]:
    """Append a zip to a seekable stream; where the bytes of each record stand, by name."""
    begin = stream.tell()
    entries = [_write_record(stream, begin, record) for record in records]
    _write_directory(stream, begin, entries)
    return {entry.name.decode(): Place(entry.start, entry.checksum) for entry in entries}


def _write_record(stream: BinaryIO, begin: int, record: Record) -> _Entry:
    position, name = stream.tell() - begin, record.name.encode()
    is_large = record.size >= LARGE
    extra = _SIZES_64.pack(1, 16, record.size, record.size) if is_large else b""
    padding = -(position + _LOCAL.size + len(name) + len(extra) + _EXTRA.size) % ALIGNMENT
    extra += _EXTRA.pack(_PADDING_ID, padding) + b"Z" * padding
    size = _ELSEWHERE if is_large else record.size
    version = 45 if is_large else 20
    stream.write(_LOCAL.pack(0x04034B50, version, 0, 0, 0, 0, 0, size, size, len(name), len(extra)) + name + extra)
    start, checksum, written = stream.tell(), 0, 0
    for chunk in record.chunks:
        checksum = zlib.crc32(chunk, checksum)
        written += stream.write(chunk)
    assert written == record.size, (record.name, written, record.size)
    end = stream.tell()
    stream.seek(begin + position + _CHECKSUM_AT)
    stream.write(checksum.to_bytes(4, "little"))
    stream.seek(end)
    return _Entry(name, record.size, checksum, position, start)


def _write_directory(stream: BinaryIO, begin: int, entries: list[_Entry]) -> None:
    directory = bytearray()
    for entry in entries:
        large = [value for value in (entry.size, entry.size, entry.position) if value >= LARGE]
        extra = _EXTRA.pack(1, 8 * len(large)) + struct.pack(f"<{len(large)}Q", *large) if large else b""
        size, position = _in_32_bits(entry.size), _in_32_bits(entry.position)
        directory += _ENTRY.pack(
            *(0x02014B50, 45 if large else 20, 45 if large else 20, 0, 0, 0, 0, entry.checksum, size, size),
            *(len(entry.name), len(extra), 0, 0, 0, 0, position),
        )
        directory += entry.name + extra
    start = stream.tell() - begin
    stream.write(directory)
    if start + len(directory) >= LARGE or len(entries) >= 0xFFFF:
        end = stream.tell() - begin
        count, size = len(entries), len(directory)
        stream.write(_END_64.pack(0x06064B50, 44, 45, 45, 0, 0, count, count, size, start))
        stream.write(_LOCATOR_64.pack(0x07064B50, 0, end, 1))
    count = min(len(entries), 0xFFFF)
    stream.write(_END.pack(0x06054B50, 0, 0, count, count, _in_32_bits(len(directory)), _in_32_bits(start), 0))


def _in_32_bits(value: int) -> int:
    return _ELSEWHERE if value >= LARGE else value
