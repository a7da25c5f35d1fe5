"""``ridgeline data``: text files to training data, and tokenizers."""

import json

import pytest

from tests.apps.runs import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = [f"The {word} of number {number}." for number in range(200) for word in ("statement", "object", "class")]
    (folder / "in").mkdir()
    (folder / "in" / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "in" / "notes.md").write_text("no format of ours")
    return folder


@pytest.fixture(scope="module")
def tokenizer(ranks, folder):
    tokens = (
        "data",
        "bpe",
        str(folder / "in" / "text.jsonl"),
        "--output",
        str(folder / "tokenizer"),
        "--vocab-size",
        "300",
    )
    ((code, out, err),) = ranks.run(command, 1, *tokens)
    assert (code, err) == (0, "")
    assert out == f"{folder}/tokenizer: 300 tokens\n"
    return folder / "tokenizer"


def test_text_becomes_a_corpus(ranks, folder, tokenizer):
    """A pair of files of the name that Megatron gives them, and a line that says what is in them."""
    tokens = ("data", "pretrain", str(folder / "in"), "--tokenizer", str(tokenizer), "--output", str(folder / "corpus"))
    ((code, out, err),) = ranks.run(command, 1, *tokens, "--workers", "1")
    assert code == 0
    assert out.startswith(f"{folder}/corpus_text_document: 600 documents, ")
    assert f"left out: {folder}/in/notes.md" in err
    assert {path.name for path in folder.glob("corpus*")} == {"corpus_text_document.bin", "corpus_text_document.idx"}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            ("--output", "{folder}/x", "--tokenizer", "{folder}/none"),
            "tokenizer='{folder}/none': no such file or folder",
        ),
        (("--output", "{folder}/x", "--tokenizer", "{tokenizer}", "--text-key", "body"), "body"),
    ],
)
def test_what_is_wrong_is_named(ranks, folder, tokenizer, tokens, message):
    """Code 2, and nothing left under the name of the output."""
    names = {"folder": folder, "tokenizer": tokenizer}
    filled = [token.format(**names) for token in tokens]
    ((code, out, err),) = ranks.run(command, 1, "data", "pretrain", str(folder / "in" / "text.jsonl"), *filled)
    assert (code, out) == (2, "")
    assert "DataError: " in err
    assert message.format(**names) in err
    assert not list(folder.glob("x*"))
