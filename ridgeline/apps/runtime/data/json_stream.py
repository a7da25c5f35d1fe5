"""The objects of a JSON file of any size, one by one: an array of them, or one after another."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from ridgeline.core.errors import DataError

CHUNK_BYTES = 1 << 20
LONGEST_TOKEN = 16  # no JSON token but a string is longer, so a fault this far from the end of what was read is a fault
SPACE = re.compile(r"[ \t\r\n]*")


def json_values(
    stream: BinaryIO, *, name: str, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield each object with the number of the line it starts on.

    Args:
        stream: The file, where its JSON starts.
        name: Of the file, for messages.
        chunk_bytes: Bytes read at a time.

    Raises:
        DataError: The file is no JSON of this shape, or is cut short; the line is named.
    """
    chunks = _decoded(stream, name=name, chunk_bytes=chunk_bytes)
    parse = json.JSONDecoder().raw_decode
    buffer, at, line = "", 0, 1
    in_array, wanted = False, "object"  # or "comma", "end"
    while True:
        end = _space_end(buffer, at)
        line, at = line + buffer.count("\n", at, end), end
        if at == len(buffer):
            buffer, at = next(chunks, ""), 0
            if not buffer:
                break
            continue
        mark = buffer[at]
        if mark == "[" and wanted == "object" and not in_array:
            in_array, wanted = True, "first"
        elif mark == "]" and wanted in ("first", "comma"):
            in_array, wanted = False, "end"
        elif mark == "," and wanted == "comma":
            wanted = "object"
        elif mark == "{" and wanted in ("first", "object"):
            while True:
                try:
                    value, end = parse(buffer, at)
                    break
                except (json.JSONDecodeError, RecursionError) as error:
                    more = _more(chunks, len(buffer) - at) if _may_be_cut(error, buffer) else ""
                    if not more:
                        raise _broken(error, name=name, line=line + _lines_before(error, buffer, at)) from error
                    buffer, at = buffer[at:] + more, 0
            yield line, value
            line, at = line + buffer.count("\n", at, end), end
            wanted = "comma" if in_array else "object"
            continue
        else:
            expected = {
                "first": "a JSON object or ']'",
                "object": "a JSON object",
                "comma": "',' or ']'",
                "end": "the end of the file",
            }[wanted]
            raise DataError(f"{name} line {line}: expected {expected}, found {buffer[at : at + 20]!r}; mend the file")
        at += 1
    if in_array:
        raise DataError(f"{name} line {line}: the array is not closed, the file may be cut short; expected ']'")


def _space_end(buffer: str, at: int) -> int:
    match = SPACE.match(buffer, at)
    return at if match is None else match.end()


def _may_be_cut(error: Exception, buffer: str) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - LONGEST_TOKEN


def _lines_before(error: Exception, buffer: str, at: int) -> int:
    return buffer.count("\n", at, error.pos) if isinstance(error, json.JSONDecodeError) else 0


def _broken(error: Exception, *, name: str, line: int) -> DataError:
    message = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
    return DataError(f"{name} line {line}: is no whole JSON: {message}; mend the file")


def _more(chunks: Iterator[str], characters: int) -> str:
    """At least so many characters more, where there are, so that a long object is parsed a few times only."""
    parts, total = [], 0
    while total < characters and (chunk := next(chunks, "")):
        parts.append(chunk)
        total += len(chunk)
    return "".join(parts)


def _decoded(stream: BinaryIO, *, name: str, chunk_bytes: int) -> Iterator[str]:
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    while chunk := stream.read(chunk_bytes):
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: expected UTF-8, found byte 0x{error.object[error.start]:02x} near byte {read + error.start}"
            ) from error
        read += len(chunk)
        if text:
            yield text
    if decoder.getstate()[0]:
        raise DataError(f"{name}: ends in the middle of a UTF-8 character; the file is cut short")
