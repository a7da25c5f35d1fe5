"""The corpus format, with Megatron-core's own builder and reader as judges."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.apps.runtime.data.indexed import DTYPE_CODES, corpus_writer, open_corpus, optimal_dtype, with_suffix
from ridgeline.core.errors import DataError

judge = pytest.importorskip("megatron.core.datasets.indexed_dataset")

DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(0, 65499), min_size=1, max_size=9), max_size=3), min_size=1, max_size=8
)


def write(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16") -> None:
    """Write documents, each a list of sequences of ids."""
    with corpus_writer(prefix, dtype=dtype) as output:
        for document in documents:
            ids = np.array([token for sequence in document for token in sequence], dtype=dtype)
            lengths = np.array([len(sequence) for sequence in document], dtype=np.int32)
            output.append(ids.tobytes(), lengths.tobytes(), np.array([len(document)], dtype=np.int32).tobytes())


def write_half(prefix: Path, *, overwrite: bool = False) -> None:
    """Fail after the first document."""
    with corpus_writer(prefix, dtype="uint16", overwrite=overwrite) as output:
        output.append(b"\0\0", struct.pack("<i", 1), struct.pack("<i", 1))
        raise RuntimeError("halfway")


@given(documents=DOCUMENTS.filter(any), dtype=st.sampled_from(["uint16", "int32"]))
@settings(deadline=None, max_examples=40)
def test_files_are_those_of_megatron_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, documents, dtype: str
) -> None:
    """Both files have the bytes Megatron's builder writes, its reader gives the ids back, and our check agrees."""
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "ours", documents, dtype)
    builder = judge.IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=np.dtype(dtype).type)
    for document in documents:
        builder.add_document([t for sequence in document for t in sequence], [len(sequence) for sequence in document])
    builder.finalize(str(folder / "theirs.idx"))

    for suffix in (".bin", ".idx"):
        assert (folder / f"ours{suffix}").read_bytes() == (folder / f"theirs{suffix}").read_bytes()
    sequences = [sequence for document in documents for sequence in document]
    read = judge.IndexedDataset(str(folder / "ours"))
    assert [read[i].tolist() for i in range(len(read))] == sequences
    corpus = open_corpus(folder / "ours")
    assert (corpus.documents, corpus.sequences, corpus.tokens, corpus.dtype) == (
        len(documents), len(sequences), sum(map(len, sequences)), dtype,
    )  # fmt: skip


def test_dtype_codes_are_those_of_megatron() -> None:
    """The code of every dtype, and the dtype of every vocabulary, are Megatron's."""
    assert {dtype.name: dtype.value for dtype in judge.DType} == dict(DTYPE_CODES)
    for size in (1, 65499, 65500, 65536, 151936):
        assert judge.DType.optimal_dtype(size).__name__ == optimal_dtype(size)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """An error halfway leaves the folder as it was."""
    with pytest.raises(RuntimeError, match="halfway"):
        write_half(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_corpus_is_kept_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    """A second corpus of the same name is refused; a failed overwrite keeps the first one whole."""
    write(tmp_path / "c", [[[1, 2]]])
    with pytest.raises(DataError, match="a corpus of this name exists"):
        write(tmp_path / "c", [[[3]]])
    with pytest.raises(RuntimeError, match="halfway"):
        write_half(tmp_path / "c", overwrite=True)
    assert open_corpus(tmp_path / "c").tokens == 2
    with corpus_writer(tmp_path / "c", dtype="int32", overwrite=True) as output:
        output.append(b"\0\0\0\0", struct.pack("<i", 1), struct.pack("<i", 1))
    assert open_corpus(tmp_path / "c").dtype == "int32"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is one clear error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"output_prefix='.*/file/c': cannot be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "c", [[[1]]])


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".bin", lambda raw: raw[:-2], r"c\.bin: .*expected 10 bytes, 5 tokens of uint16, found 8 bytes"),
        (".bin", lambda raw: raw + b"\0", r"c\.bin: .*expected 10 bytes, .* found 11 bytes"),
        (".bin", lambda raw: b"", r"c\.bin: .*expected 10 bytes, .* found 0 bytes"),
        (".idx", lambda raw: b"", r"c\.idx: .*expected 34 bytes for its header alone, found 0 bytes"),
        (
            ".idx",
            lambda raw: raw[:-8],
            r"c\.idx: .*expected 82 bytes for 2 sequences and 3 document marks, found 74 bytes",
        ),
        (".idx", lambda raw: b"PK" + raw[2:], r"c\.idx: is no Megatron index: expected magic b'MMIDIDX"),
        (".idx", lambda raw: raw[:17] + b"\x63" + raw[18:], r"c\.idx: is no Megatron index: .* found .* 1 and 99"),
        (".idx", lambda raw: raw[:-8] + struct.pack("<q", 1), r"its document marks run from 0 to 1, expected 0 to 2"),
    ],
)
def test_damage_is_named_with_sizes(tmp_path: Path, suffix: str, damage, message: str) -> None:
    """Each way to cut or swap a file gives its name, what was expected and what was found."""
    write(tmp_path / "c", [[[1, 2, 3]], [[4, 5]]])
    path = with_suffix(tmp_path / "c", suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path / "c")


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    """An index without a sequence is nothing to train on."""
    write(tmp_path / "c", [[]])
    with pytest.raises(DataError, match=r"c\.idx: the corpus holds no tokens"):
        open_corpus(tmp_path / "c")


def test_a_missing_prefix_names_the_near_one(tmp_path: Path) -> None:
    """A mistyped prefix, one with its suffix and one in no folder each get their way out."""
    write(tmp_path / "wiki_text_document", [[[1]]])
    with pytest.raises(
        DataError, match=r"wiki_text_dcument\.idx does not exist; did you mean '.*/wiki_text_document'\?"
    ):
        open_corpus(tmp_path / "wiki_text_dcument")
    with pytest.raises(DataError, match=r"leave the suffix out: '.*/wiki_text_document'"):
        open_corpus(tmp_path / "wiki_text_document.bin")
    with pytest.raises(DataError, match=r"the folder '.*/none' does not exist either"):
        open_corpus(tmp_path / "none" / "c")
    with_suffix(tmp_path / "wiki_text_document", ".bin").unlink()
    with pytest.raises(DataError, match=r"wiki_text_document\.bin does not exist"):
        open_corpus(tmp_path / "wiki_text_document")
