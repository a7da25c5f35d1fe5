"""A block: a run of documents of one raw file, which a reader cuts off and an encoder turns into ids."""

import json
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import attrs

from ridgeline.core.errors import DataError, nearest

Text: TypeAlias = "str | list[str]"


@attrs.frozen(kw_only=True)
class Block:
    """Consecutive documents of one file.

    Attributes:
        source: The file, for messages.
        kind: What ``payload`` is: whole lines that each hold a JSON object or a text, or texts already taken apart.
        payload: The bytes of whole lines, or ``(number, text)`` pairs.
        first: Number of the first line of ``payload``, from 1; unused for texts, which carry their own.
        unit: What the numbers count: ``"line"``, ``"row"`` or ``"paragraph"``.
        read_bytes: Bytes of the file this block used up, compressed ones where the file is compressed.
    """

    source: str
    kind: Literal["json_lines", "text_lines", "texts"]
    payload: "bytes | tuple[tuple[int, object], ...]"
    first: int = 1
    unit: str = "line"
    read_bytes: int = 0


def texts_of(block: Block, *, text_key: str) -> Iterator[tuple[int, Text]]:
    """The documents of a block with their numbers, in order; blank lines hold no document.

    Raises:
        DataError: A line is no UTF-8, no JSON object or lacks the key, or a text is no text; file and number are named.
    """
    if not isinstance(block.payload, bytes):
        for number, value in block.payload:
            yield number, check_text(value, where=f"{block.source} {block.unit} {number}")
        return
    for number, line in enumerate(block.payload.split(b"\n"), start=block.first):
        where = f"{block.source} {block.unit} {number}"
        decoded = decode(line, where=where).strip("\r\n")
        if not decoded.strip():
            continue
        yield (
            number,
            decoded
            if block.kind == "text_lines"
            else text_of(parse_record(decoded, where=where), text_key, where=where),
        )


def parse_record(line: str, *, where: str) -> object:
    """One line of JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: expected one JSON object, found {_shown(line)} ({error}); mend or remove this line"
        ) from error


def text_of(record: object, text_key: str, *, where: str) -> Text:
    """The text of a record: a string, or a list of strings that become sequences of one document."""
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where}: expected a JSON object with the key {text_key!r}, found {_shown(json.dumps(record))}"
        )
    if text_key not in record:
        raise DataError(f"{where}: has no key text_key={text_key!r}; {nearest(text_key, map(str, record))}")
    return check_text(record[text_key], where=where)


def check_text(value: object, *, where: str) -> Text:
    """A document's text as it is, if it is one."""
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value)):
        return value
    raise DataError(f"{where}: expected its text to be a string or a list of strings, found {_shown(repr(value))}")


def decode(raw: bytes, *, where: str) -> str:
    """Bytes as UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise DataError(
            f"{where}: expected UTF-8, found byte 0x{byte:02x} at position {error.start + 1}; convert the file to UTF-8"
        ) from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
