"""A tokenizer trained in place."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ridgeline.apps.runtime.data.bpe import train_bpe
from ridgeline.core.errors import DataError


@given(text=st.text(max_size=40))
@settings(deadline=None, max_examples=50)
def test_no_text_is_lost(tokenizer_folder: Path, text: str) -> None:
    """AutoTokenizer loads the folder, and any text comes back from its ids as it was."""
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_same_text_gives_the_same_tokenizer(documents: list[str], tokenizer_folder: Path, tmp_path: Path) -> None:
    """Training has no chance in it, and the end of document is one token."""
    (tmp_path / "a.txt").write_text("\n".join(documents), encoding="utf-8")
    trained = train_bpe([tmp_path / "a.txt"], vocab_size=400, out=tmp_path / "again")
    assert trained.vocab_size == 400
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    hf = AutoTokenizer.from_pretrained(str(trained.path))
    assert hf("<|endoftext|>")["input_ids"] == [hf.eos_token_id] == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "again"]


def test_small_text_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    """Where nothing is left to merge, the true size is told."""
    (tmp_path / "a.txt").write_text("aa")
    assert train_bpe([tmp_path / "a.txt"], vocab_size=4000, out=tmp_path / "t").vocab_size == 258


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    """A vocabulary without room for the bytes, and a folder that exists."""
    (tmp_path / "a.txt").write_text("aa")
    with pytest.raises(DataError, match="vocab_size=256: must be >= 257"):
        train_bpe([tmp_path / "a.txt"], vocab_size=256, out=tmp_path / "t")
    with pytest.raises(DataError, match="exists; remove it or choose another folder"):
        train_bpe([tmp_path / "a.txt"], vocab_size=300, out=tmp_path)
