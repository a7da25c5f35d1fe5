"""``ridgeline data``: text files to training data, and tokenizers to read them."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ridgeline.apps.edges import edge

NoNegative = Parameter(negative="")


def pretrain(
    *inputs: Path,
    tokenizer: Path,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    text_key: str = "text",
    eod: bool = True,
    workers: int | None = None,
    format: Literal["jsonl", "json", "txt", "csv", "parquet", "arrow"] | None = None,
    document: Literal["line", "paragraph", "file"] = "line",
    eod_token: str | None = None,
    special_tokens: Annotated[bool, NoNegative] = False,
    overwrite: Annotated[bool, NoNegative] = False,
) -> None:
    """Tokenise text files into Megatron's .bin and .idx, byte for byte as Megatron-LM does.

    Args:
        inputs: Files and folders of jsonl, json, txt, csv, parquet and arrow.
        tokenizer: A Hugging Face folder, or its tokenizer.json.
        output: Start of the name: OUTPUT_text_document.bin.
        text_key: Field or column that holds the text.
        eod: End each document with the end-of-document token.
        workers: Processes; by default as many as the input is worth.
        format: Of every file; by default its suffix tells.
        document: What one document of a txt file is.
        eod_token: The end-of-document token; by default the tokenizer's end of sequence.
        special_tokens: Let the tokenizer add its own tokens to each text.
        overwrite: Replace a corpus of this name.
    """
    from rich.console import Console

    prepared = edge("ridgeline.apps.runtime.data.prepare:prepare_pretrain")(
        inputs,
        output,
        tokenizer=tokenizer,
        text_key=text_key,
        append_eod=eod,
        workers=workers,
        format=format,
        document=document,
        eod_token=eod_token,
        special_tokens=special_tokens,
        overwrite=overwrite,
        progress=Console(stderr=True),
    )
    for path in prepared.ignored:
        sys.stderr.write(f"left out: {path} (no format we read)\n")
    corpus = prepared.corpus
    sys.stdout.write(
        f"{corpus.prefix}: {corpus.documents:,} documents, {corpus.tokens:,} tokens, "
        f"from {len(prepared.files)} files of {prepared.source_bytes / 1e6:,.1f} MB\n"
    )


def bpe(
    *inputs: Path,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    vocab_size: int = 8192,
    text_key: str = "text",
    eod_token: str = "<|endoftext|>",
) -> None:
    """Train a byte-level BPE tokenizer on text files, for a model too small for a published vocabulary.

    Args:
        inputs: Files and folders of text.
        output: Folder to make.
        vocab_size: Tokens at most.
        text_key: Field or column that holds the text.
        eod_token: The end-of-document token.
    """
    trained = edge("ridgeline.apps.runtime.data.bpe:train_bpe")(
        inputs, vocab_size=vocab_size, out=output, eod_token=eod_token, text_key=text_key
    )
    sys.stdout.write(f"{trained.path}: {trained.vocab_size} tokens\n")
