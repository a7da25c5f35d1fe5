"""Documents to token ids: what a worker process does. No torch, no transformers: it starts at once."""

import functools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from pathlib import Path

import attrs
import numpy as np
from tokenizers import Tokenizer

from ridgeline.apps.runtime.data.blocks import Block, texts_of
from ridgeline.core.errors import DataError


@attrs.frozen(kw_only=True)
class Encoder:
    """How a block becomes ids.

    Attributes:
        tokenizer: Of a Rust tokenizer, its whole as one JSON file; of one written in Python, its folder.
        special_tokens: Whether the tokenizer may put its own tokens around each text (``<s>``).
        split_special_tokens: Whether a special token spelled out in a text is plain text.
        eod: Id appended to each document that is not empty; None appends nothing.
        text_key: Field of a JSON record that holds the text.
        dtype: Of the ids.
    """

    tokenizer: Path
    special_tokens: bool
    split_special_tokens: bool
    eod: int | None
    text_key: str
    dtype: str


@attrs.frozen(kw_only=True)
class Encoded:
    """The documents of a block as bytes: ids, tokens of each sequence (int32), sequences of each document (int32)."""

    ids: bytes
    sequence_lengths: bytes
    document_lengths: bytes
    read_bytes: int


def start_worker() -> None:
    """Prepare a worker process: one thread, Ctrl-C is the parent's to answer, and no life beyond the parent's."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def encode_block(block: Block, encoder: Encoder) -> Encoded:
    """Tokenise the documents of a block.

    A document that gives no token leaves no sequence, but keeps its place in the document index, as Megatron has it.

    Raises:
        DataError: A document is broken; file and line are named.

    Source:
        NVIDIA/Megatron-LM core_v0.16.1, tools/preprocess_data.py, ``Encoder.encode``, ``Partition.process_json_file``.
    """
    numbered = list(texts_of(block, text_key=encoder.text_key))
    documents = [[text] if isinstance(text, str) else text for _, text in numbered]
    sentences = [sentence for document in documents for sentence in document]
    tokenise = _tokeniser(encoder)
    try:
        token_lists = iter(tokenise(sentences))
    except Exception as error:  # the Rust side raises TypeError for a lone surrogate, bare Exception for the rest
        raise _located(
            block,
            [(number, part) for (number, _), parts in zip(numbered, documents, strict=True) for part in parts],
            tokenise,
        ) from error
    ids: list[int] = []
    sequence_lengths: list[int] = []
    document_lengths: list[int] = []
    for document in documents:
        lengths = []
        for _, tokens in zip(document, token_lists, strict=False):  # the shorter one first: it takes no list too many
            if tokens:
                ids.extend(tokens)
                lengths.append(len(tokens))
        if lengths and encoder.eod is not None:
            ids.append(encoder.eod)
            lengths[-1] += 1
        sequence_lengths.extend(lengths)
        document_lengths.append(len(lengths))
    return Encoded(
        ids=np.array(ids, dtype=encoder.dtype).tobytes(),
        sequence_lengths=np.array(sequence_lengths, dtype="<i4").tobytes(),
        document_lengths=np.array(document_lengths, dtype="<i4").tobytes(),
        read_bytes=block.read_bytes,
    )


@functools.lru_cache(maxsize=1)
def _tokeniser(encoder: Encoder) -> Callable[[Sequence[str]], Sequence[list[int]]]:
    if encoder.tokenizer.is_dir():
        from transformers import AutoTokenizer  # seconds of import, for the rare tokenizer written in Python

        slow = AutoTokenizer.from_pretrained(str(encoder.tokenizer), local_files_only=True, trust_remote_code=False)
        return lambda texts: [slow(text, add_special_tokens=encoder.special_tokens)["input_ids"] for text in texts]
    fast = Tokenizer.from_file(str(encoder.tokenizer))
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = encoder.split_special_tokens
    return lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=encoder.special_tokens)]


def _located(
    block: Block, numbered: Sequence[tuple[int, str]], tokenise: Callable[[Sequence[str]], object]
) -> DataError:
    for number, text in numbered:
        try:
            text.encode("utf-8")
            tokenise([text])
        except UnicodeEncodeError as error:
            reason = f"expected Unicode text, found the lone surrogate U+{ord(text[error.start]):04X}"
        except Exception as error:
            reason = f"the tokenizer refuses this text: {error}"
        else:
            continue
        return DataError(f"{block.source} {block.unit} {number}: {reason}; mend or remove this {block.unit}")
    return DataError(f"{block.source} {block.unit}s from {block.first}: the tokenizer refuses this block")


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
