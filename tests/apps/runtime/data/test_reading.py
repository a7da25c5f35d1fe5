"""Raw files to documents: every format tells the same, and every fault names its file and line."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.apps.runtime.data.blocks import texts_of
from ridgeline.apps.runtime.data.json_stream import json_values
from ridgeline.apps.runtime.data.reading import DocumentUnit, Format, find_files, read_blocks
from ridgeline.core.errors import DataError


def texts(
    path: Path, *, key: str = "text", format: Format | None = None, document: DocumentUnit = "line"
) -> list[object]:
    """The documents of a file, and a check that its blocks use up all of its bytes."""
    found = []
    for file in find_files([path], format=format).files:
        for block in read_blocks(file, text_key=key, document=document):
            found.extend(text for _, text in texts_of(block, text_key=key))
    return found


def as_csv(rows: list[str]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(rows))
    return buffer.getvalue().encode()


def as_table(rows: list[str]) -> pa.Table:
    return pa.table({"id": range(len(rows)), "text": pa.array(rows, pa.string())})


def as_parquet(rows: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(as_table(rows), buffer, row_group_size=7)
    return buffer.getvalue()


def as_arrow(rows: list[str], new: Callable) -> bytes:
    buffer = io.BytesIO()
    with new(buffer, as_table(rows).schema) as writer:
        writer.write_table(as_table(rows), max_chunksize=13)
    return buffer.getvalue()


def records(rows: list[str]) -> list[dict[str, object]]:
    return [{"id": i, "text": row} for i, row in enumerate(rows)]


def as_lines(rows: list[str]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records(rows)).encode()


WRITERS: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "jsonl": (".jsonl", as_lines),
    "jsonl, no last newline": (".jsonl", lambda rows: "\n".join(json.dumps(r) for r in records(rows)).encode()),
    "jsonl, blank lines, CRLF": (".jsonl", lambda rows: "\r\n\r\n".join(json.dumps(r) for r in records(rows)).encode()),
    "jsonl, byte order mark": (".jsonl", lambda rows: b"\xef\xbb\xbf" + as_lines(rows)),
    "jsonl.gz": (".jsonl.gz", lambda rows: gzip.compress(as_lines(rows))),
    "json array": (".json", lambda rows: json.dumps(records(rows), indent=1, ensure_ascii=False).encode()),
    "json array on a line": (".json", lambda rows: json.dumps(records(rows)).encode()),
    "json array, byte order mark": (".json", lambda rows: b"\xef\xbb\xbf" + json.dumps(records(rows)).encode()),
    "json lines": (".json", as_lines),
    "json, one after another": (".json", lambda rows: "".join(json.dumps(r, indent=2) for r in records(rows)).encode()),
    "csv": (".csv", as_csv),
    "csv.gz": (".csv.gz", lambda rows: gzip.compress(as_csv(rows))),
    "parquet": (".parquet", as_parquet),
    "arrow file": (".arrow", lambda rows: as_arrow(rows, pa.ipc.new_file)),
    "arrow stream": (".arrow", lambda rows: as_arrow(rows, pa.ipc.new_stream)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_documents_in_order(kind: str, tmp_path: Path, documents: list[str]) -> None:
    """What was written comes back, whatever the format, empty texts included."""
    suffix, write = WRITERS[kind]
    path = tmp_path / f"data{suffix}"
    path.write_bytes(write(documents))
    assert texts(path) == documents


@pytest.mark.parametrize("kind", ["jsonl", "json array", "csv", "parquet", "arrow file", "arrow stream"])
def test_blocks_are_small_and_cover_the_file(kind: str, tmp_path: Path) -> None:
    """A file of many blocks is cut at documents, none above some MiB, and their bytes add up to the file's."""
    rows = [f"{i} " + "x" * 3000 for i in range(2000)]
    suffix, write = WRITERS[kind]
    path = tmp_path / f"data{suffix}"
    path.write_bytes(write(rows))
    (file,) = find_files([path]).files
    blocks = list(read_blocks(file, text_key="text"))
    assert len(blocks) > 3
    assert [text for block in blocks for _, text in texts_of(block, text_key="text")] == rows
    assert abs(sum(block.read_bytes for block in blocks) - file.size_bytes) <= 0.01 * file.size_bytes


def test_a_long_field_of_csv_is_read_and_the_limit_restored(tmp_path: Path) -> None:
    """A document of 1 MB passes, though the csv module's own limit, which others may rely on, is 128 KiB."""
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_bytes(as_csv(["x" * 1_000_000]))
    assert texts(tmp_path / "a.csv") == ["x" * 1_000_000]
    assert csv.field_size_limit() == limit


def test_txt_is_lines_paragraphs_or_a_file(tmp_path: Path) -> None:
    """Blank lines part paragraphs and are no documents."""
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n\n \nthree\n")
    assert texts(tmp_path / "a.txt") == ["one", "two", "three"]
    assert texts(tmp_path / "a.txt", document="paragraph") == ["one\r\ntwo", "three"]
    assert texts(tmp_path / "a.txt", document="file") == ["one\r\ntwo\n\n \nthree\n"]


def test_folders_are_read_by_path_and_tell_what_they_leave(tmp_path: Path) -> None:
    """Known suffixes of all subfolders in the order of their paths; the rest is listed; hidden files are no data."""
    for name in ("b.txt", "a/2.jsonl", "a/1.txt", ".git/x.txt", "README.md", "c.txt.gz", "d.parquet.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_files([tmp_path])
    assert [str(file.path.relative_to(tmp_path)) for file in found.files] == [
        "a/1.txt",
        "a/2.jsonl",
        "b.txt",
        "c.txt.gz",
    ]
    assert [str(path.relative_to(tmp_path)) for path in found.ignored] == ["README.md", "d.parquet.gz"]


OBJECTS = st.lists(
    st.dictionaries(
        st.text(max_size=3),
        st.one_of(st.text(max_size=9), st.lists(st.floats(allow_nan=False), max_size=2)),
        max_size=3,
    ),
    max_size=5,
)


@given(
    values=OBJECTS, indent=st.sampled_from([None, 1]), ascii=st.booleans(), chunk=st.integers(1, 9), lined=st.booleans()
)
@settings(deadline=None, max_examples=150)
def test_json_of_any_size_is_parsed_in_pieces(values, indent, ascii: bool, chunk: int, lined: bool) -> None:
    """Read a few bytes at a time, an array or objects one after another give what the whole gives."""
    separator = "\n" if lined else ""
    whole = json.dumps(values, indent=indent, ensure_ascii=ascii)
    after_another = separator.join(json.dumps(value, indent=indent, ensure_ascii=ascii) for value in values)
    for text in (whole, after_another):
        stream = io.BytesIO(text.encode("utf-8", "surrogatepass"))
        assert [value for _, value in json_values(stream, name="x", chunk_bytes=chunk)] == values


@given(values=OBJECTS.filter(len), data=st.data())
@settings(deadline=None, max_examples=60)
def test_json_cut_short_is_never_taken_for_whole(values, data: st.DataObject) -> None:
    """An array that ends anywhere before its end is refused."""
    whole = json.dumps(values)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(DataError, match="x line 1: "):
        list(json_values(io.BytesIO(whole[:cut].encode()), name="x", chunk_bytes=5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b"\n',
            r"a\.jsonl line 2: expected one JSON object, found '\{\"text\": \"b\"'",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n[1]\n',
            r"a\.jsonl line 3: expected a JSON object with the key 'text', found '\[1\]'",
        ),
        (
            "a.jsonl",
            b'{"txt": "a", "id": 3}\n',
            r"a\.jsonl line 1: has no key text_key='text'; did you mean 'txt'\? known: id, txt",
        ),
        (
            "a.jsonl",
            b'{"text": 3}\n',
            r"a\.jsonl line 1: expected its text to be a string or a list of strings, found '3'",
        ),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl line 1: expected its text .* found 'None'"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\xff"}\n',
            r"a\.jsonl line 2: expected UTF-8, found byte 0xff at position 11",
        ),
        ("a.jsonl", b"", r"a\.jsonl: is empty \(0 bytes\)"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-20], r"a\.jsonl\.gz: is damaged or cut short"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: is damaged or cut short: Not a gzipped file"),
        (
            "a.json",
            b'[{"text": "a"},\n {"text": "b"},\n {"text" "c"}]',
            r"a\.json line 3: is no whole JSON: Expecting ':' delimiter",
        ),
        ("a.json", b'[{"text": "a"}\n', r"a\.json line 2: the array is not closed"),
        ("a.json", b'[{"text": "a"},\n 4]', r"a\.json line 2: expected a JSON object, found '4\]'"),
        ("a.json", b'[{"text": "a"}] [', r"a\.json line 1: expected the end of the file, found '\['"),
        ("a.json", b'[{"txt": "a"}]', r"a\.json line 1: has no key text_key='text'; did you mean 'txt'"),
        ("a.json", b'[{"text": "\xe5', r"a\.json: ends in the middle of a UTF-8 character"),
        ("a.json", b'[{"text": "\xff"}]', r"a\.json: expected UTF-8, found byte 0xff near byte 11"),
        (
            "a.csv",
            b"id,txt\n1,a\n",
            r"a\.csv line 1: has no column text_key='text'; did you mean 'txt'\? known: id, txt",
        ),
        ("a.csv", b'id,text\n1,"a\nb"\n2,b,c\n', r"a\.csv line 4: expected 2 fields as in the header, found 3"),
        ("a.csv", b'id,text\n1,"a\n', r"a\.csv line 2: is not CSV: unexpected end of data"),
        ("a.txt", b"ok\n\xfe\n", r"a\.txt line 2: expected UTF-8, found byte 0xfe at position 1"),
        ("a.parquet", b"PAR1", r"a\.parquet: is no whole Parquet file"),
        ("a.parquet", as_parquet(["a"])[:-9], r"a\.parquet: is no whole Parquet file"),
        ("a.arrow", b"ARROW1garbage", r"a\.arrow: is no whole Arrow IPC file"),
        ("a.arrow", as_arrow(["abc"] * 50, pa.ipc.new_stream)[:-40], r"a\.arrow: is no whole Arrow IPC file"),
    ],
)
def test_a_fault_names_file_and_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """Each broken file gives one error that says where and what was expected."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    """Columnar files name the nearest column."""
    for name, content in (("a.parquet", as_parquet(["a"])), ("a.arrow", as_arrow(["a"], pa.ipc.new_stream))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"has no column text_key='txt'; did you mean 'text'\? known: id, text"):
            texts(tmp_path / name, key="txt")


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    """Unknown suffixes, missing files and folders without data are refused before anything is read."""
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.pdf': unknown suffix '\.pdf'; known: \.jsonl, .*, or give the format"):
        find_files([tmp_path / "a.pdf"])
    with pytest.raises(DataError, match=r"/none': no such file or folder"):
        find_files([tmp_path / "none"])
    with pytest.raises(DataError, match="the folder holds no file to read"):
        find_files([tmp_path])
    with pytest.raises(DataError, match=r"format='jsnl': unknown; did you mean 'jsonl'"):
        find_files([tmp_path / "a.pdf"], format="jsnl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="no file to read"):
        find_files([])
    assert find_files([tmp_path / "a.pdf"], format="txt").files[0].format == "txt"
