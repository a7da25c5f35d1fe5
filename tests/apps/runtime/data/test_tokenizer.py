"""Local tokenizers: what is read from them, and what is refused."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ridgeline.apps.runtime.data.tokenizer import check_eod, check_vocabulary, load_tokenizer
from ridgeline.core.errors import DataError

libraries = pytest.importorskip("megatron.core.tokenizers.text.libraries.huggingface_tokenizer")


@pytest.mark.filterwarnings("ignore")
def test_facts_are_those_megatron_reads(tokenizer_folder: Path) -> None:
    """Vocabulary and end of document are Megatron's of the same folder."""
    theirs = libraries.HuggingFaceTokenizer(str(tokenizer_folder))
    ours = load_tokenizer(tokenizer_folder)
    assert (ours.eod, ours.vocab_size, ours.highest_id) == (theirs.eod, theirs.vocab_size, 399)
    assert check_eod(ours) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_separator_stands_in_for_a_missing_end_as_in_megatron(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A tokenizer of the BERT kind ends documents with its separator."""
    hf = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    hf.eos_token = None
    hf.add_special_tokens({"sep_token": "[SEP]"})
    hf.save_pretrained(str(tmp_path / "bert"))
    assert load_tokenizer(tmp_path / "bert").eod == libraries.HuggingFaceTokenizer(str(tmp_path / "bert")).eod == 400


def test_digest_follows_the_content_not_the_place(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A copy has the same digest; one more token, or another end of document, has not."""
    hf = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    hf.save_pretrained(str(tmp_path / "copy"))
    hf.add_tokens(["ridgeline"])
    hf.save_pretrained(str(tmp_path / "more"))
    original = load_tokenizer(tokenizer_folder).digest
    assert load_tokenizer(tmp_path / "copy").digest == original
    assert load_tokenizer(tmp_path / "more").digest != original
    assert load_tokenizer(tmp_path / "more", eod_token="ridgeline").digest != load_tokenizer(tmp_path / "more").digest


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer_folder: Path) -> None:
    """The highest id decides, and the message holds both numbers."""
    tokenizer = load_tokenizer(tokenizer_folder)
    check_vocabulary(tokenizer, 400)
    with pytest.raises(
        DataError, match=r"its ids reach 399, but model\.vocab_size=399 has ids below 399 .* at least 400"
    ):
        check_vocabulary(tokenizer, 399)


def test_a_path_without_a_tokenizer_is_named(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A missing folder gets its near match, an empty and a broken one what was expected; no network is asked."""
    with pytest.raises(DataError, match=r"/bpee': no such file or folder; did you mean '.*/bpe'\?"):
        load_tokenizer(tokenizer_folder.with_name("bpee"))
    with pytest.raises(DataError, match="no such file or folder; give a local folder; nothing is downloaded"):
        load_tokenizer(Path("Qwen/Qwen2.5-7B"))
    with pytest.raises(DataError, match=r"cannot be read as a Hugging Face tokenizer: .*; expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a Hugging Face tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_code_in_the_folder_is_not_run(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A folder that brings its own tokenizer class is read without it or refused, never executed."""
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(DataError, match="cannot be read as a Hugging Face tokenizer"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
