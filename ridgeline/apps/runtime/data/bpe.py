"""A small byte-level BPE tokenizer trained on raw files, for models too small for a published vocabulary."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ridgeline.apps.runtime.data.blocks import texts_of
from ridgeline.apps.runtime.data.reading import Format, find_files, read_blocks
from ridgeline.core.errors import DataError

BYTES = 256


@attrs.frozen(kw_only=True)
class TrainedTokenizer:
    """A tokenizer folder and its size, which is below the size asked for where the text had no more to merge."""

    path: Path
    vocab_size: int


def train_bpe(
    files: Sequence[Path],
    *,
    vocab_size: int,
    out: Path,
    eod_token: str = "<|endoftext|>",
    text_key: str = "text",
    format: Format | None = None,
) -> TrainedTokenizer:
    """Train a byte-level BPE, which loses no byte of any text, and save it as a folder ``AutoTokenizer`` loads.

    Args:
        files: Raw files and folders to learn from.
        vocab_size: Tokens at most: the 256 bytes, the end-of-document token with id 0, and merges.
        out: Folder to make.
        eod_token: The end-of-document token, which is the tokenizer's end of sequence.
        text_key: Field or column that holds the text.
        format: Of every file; None goes by suffix.

    Raises:
        DataError: ``vocab_size`` has no room for the bytes, ``out`` exists, or a file cannot be read.
    """
    if vocab_size < BYTES + 1:
        raise DataError(f"vocab_size={vocab_size}: must be >= {BYTES + 1}, the bytes and the end-of-document token")
    if out.exists():
        raise DataError(f"out={str(out)!r}: exists; remove it or choose another folder")
    found = find_files(files, format=format)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eod_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for file in found.files:
            for block in read_blocks(file, text_key=text_key):
                for _, text in texts_of(block, text_key=text_key):
                    yield from [text] if isinstance(text, str) else text

    tokenizer.train_from_iterator(texts(), trainer)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eod_token).save_pretrained(str(folder))
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return TrainedTokenizer(path=out, vocab_size=tokenizer.get_vocab_size())
