"""Raw files tokenised once."""

import json
import os
from pathlib import Path

import pytest

from ridgeline.apps.runtime.data.cache import Tokenising, source_corpus, tokenised_cache
from ridgeline.apps.runtime.data.indexed import Corpus
from ridgeline.apps.runtime.data.prepare import prepare_pretrain
from ridgeline.core.errors import DataError
from tests.pool import Pool


@pytest.fixture
def raw(tmp_path: Path, documents: list[str]) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def test_the_second_run_finds_what_the_first_one_made(raw: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """The corpus is that of the preparation, is found again, and is made anew for whatever would change it."""
    cache, tokenising = tmp_path / "cache", Tokenising(tokenizer=tokenizer_folder)
    first = tokenised_cache([raw], cache=cache, tokenising=tokenising)
    made = first.prefix.with_suffix(".bin").stat()
    prepared = prepare_pretrain([raw], tmp_path / "plain", tokenizer=tokenizer_folder).corpus
    assert first.prefix.with_suffix(".bin").read_bytes() == prepared.prefix.with_suffix(".bin").read_bytes()

    assert tokenised_cache([raw], cache=cache, tokenising=tokenising) == first
    assert first.prefix.with_suffix(".bin").stat().st_mtime_ns == made.st_mtime_ns
    no_end = tokenised_cache([raw], cache=cache, tokenising=Tokenising(tokenizer=tokenizer_folder, append_eod=False))
    os.utime(raw, ns=(0, 1))
    touched = tokenised_cache([raw], cache=cache, tokenising=tokenising)
    assert len({first.prefix, no_end.prefix, touched.prefix}) == 3
    assert len(list(cache.iterdir())) == 3
    assert json.loads((first.prefix.parent / "source.json").read_text())["files"][0][0] == str(raw)


def test_a_failure_leaves_no_entry(raw: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """A broken line comes through with its place, and the cache stays empty."""
    with raw.open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"a\.jsonl line 61: expected one JSON object"):
        tokenised_cache([raw], cache=tmp_path / "cache", tokenising=Tokenising(tokenizer=tokenizer_folder))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_entry_says_how_to_mend_it(raw: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """What was cut short in the cache is named, with the folder to remove."""
    tokenising = Tokenising(tokenizer=tokenizer_folder)
    corpus = tokenised_cache([raw], cache=tmp_path / "cache", tokenising=tokenising)
    os.truncate(corpus.prefix.with_suffix(".bin"), 10)
    with pytest.raises(DataError, match=r"expected \d+ bytes, .* found 10 bytes; .* remove '.*' and it is made again"):
        tokenised_cache([raw], cache=tmp_path / "cache", tokenising=tokenising)


def test_a_source_is_a_prefix_or_raw(raw: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Both ways give the same corpus; a raw file without a tokenizer and a mistyped prefix get their way out."""
    prepared = prepare_pretrain([raw], tmp_path / "c", tokenizer=tokenizer_folder).corpus
    cache, tokenising = tmp_path / "cache", Tokenising(tokenizer=tokenizer_folder)
    assert source_corpus(prepared.prefix, cache=cache, tokenising=None) == prepared
    assert source_corpus(raw, cache=cache, tokenising=tokenising).tokens == prepared.tokens
    with pytest.raises(DataError, match=r"a\.jsonl': raw text needs a tokenizer; set data\.tokenizer"):
        source_corpus(raw, cache=cache, tokenising=None)
    with pytest.raises(DataError, match=r"c_text_documen\.idx does not exist; did you mean '.*/c_text_document'"):
        source_corpus(tmp_path / "c_text_documen", cache=cache, tokenising=tokenising)


def corpus_on_each(raw: str, cache: str, tokenizer: str) -> tuple[Corpus, int]:
    corpus = tokenised_cache(
        [Path(raw)], cache=Path(cache), tokenising=Tokenising(tokenizer=Path(tokenizer)), workers=1
    )
    return corpus, os.stat(f"{corpus.prefix}.bin").st_ino


def test_rank_zero_tokenises_for_all(ranks: Pool, raw: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Two ranks have one and the same corpus."""
    first, second = ranks.run(corpus_on_each, 2, str(raw), str(tmp_path / "cache"), str(tokenizer_folder))
    assert first == second
    assert len(list((tmp_path / "cache").iterdir())) == 1
