"""A Hugging Face tokenizer read from local files, and the checks that it fits its use."""

import hashlib
from difflib import get_close_matches
from pathlib import Path

import attrs
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ridgeline.core.errors import DataError


@attrs.frozen(kw_only=True, eq=False)
class TextTokenizer:
    """A loaded tokenizer and the facts that do not change.

    Attributes:
        path: Folder, or tokenizer.json, it was read from.
        hf: The transformers object.
        eod: Id of the end of document, which is the tokenizer's end of sequence; None where it has none.
        vocab_size: Tokens, added ones included; Megatron picks the dtype of a corpus by it.
        highest_id: The largest id it can give, which a vocabulary with holes has beyond ``vocab_size - 1``.
        digest: Of everything that decides which ids a text gets, and of ``eod``.
    """

    path: Path
    hf: PreTrainedTokenizerBase
    eod: int | None
    vocab_size: int
    highest_id: int
    digest: str

    @property
    def backend_json(self) -> str | None:
        """The whole of a Rust tokenizer as JSON, or None for one written in Python."""
        return self.hf.backend_tokenizer.to_str() if isinstance(self.hf, PreTrainedTokenizerFast) else None


def load_tokenizer(path: Path, *, eod_token: str | None = None) -> TextTokenizer:
    """Read a tokenizer from local files alone: no network, no code from the folder.

    Args:
        path: A Hugging Face folder, or a ``tokenizer.json`` (the ``tokenizer_config.json`` beside it is honoured).
        eod_token: Token that ends a document; None takes the end of sequence, else the separator, as Megatron does.

    Raises:
        DataError: The path does not exist or holds no tokenizer, or ``eod_token`` is not in its vocabulary.
    """
    if not path.exists():
        raise DataError(f"tokenizer={str(path)!r}: no such file or folder; {_near_folder(path)}")
    hf = _read(path)
    vocabulary = hf.get_vocab()
    name = eod_token if eod_token is not None else hf.eos_token or hf.sep_token
    if name is not None and name not in vocabulary:
        raise DataError(f"tokenizer={str(path)!r}: eod_token={name!r} is not in its vocabulary; {_special_tokens(hf)}")
    eod = None if name is None else vocabulary[name]
    return TextTokenizer(
        path=path,
        hf=hf,
        eod=eod,
        vocab_size=len(hf),
        highest_id=max(vocabulary.values()),
        digest=_digest(path, hf, eod=eod),
    )


def check_eod(tokenizer: TextTokenizer) -> int:
    """The end-of-document id.

    Raises:
        DataError: The tokenizer has none.
    """
    if tokenizer.eod is None:
        raise DataError(
            f"tokenizer={str(tokenizer.path)!r}: names no end-of-sequence token to end a document with; "
            f"set eos_token in its tokenizer_config.json or give eod_token; {_special_tokens(tokenizer.hf)}"
        )
    return tokenizer.eod


def check_vocabulary(tokenizer: TextTokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that gives ids the model has no embedding for.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Rows of the model's embedding that stand for tokens.

    Raises:
        DataError: The highest id is not below ``vocab_size``.
    """
    if tokenizer.highest_id >= vocab_size:
        raise DataError(
            f"tokenizer={str(tokenizer.path)!r}: its ids reach {tokenizer.highest_id}, but "
            f"model.vocab_size={vocab_size} has ids below {vocab_size} only; use a vocab_size of at least "
            f"{tokenizer.highest_id + 1}, or the model's own tokenizer"
        )


def _read(path: Path) -> PreTrainedTokenizerBase:
    alone = path.is_file() and not (path.with_name("tokenizer_config.json").is_file() and path.name == "tokenizer.json")
    try:
        if alone:
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        folder = path.parent if path.is_file() else path
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise whatever their parsers do, bare Exception included
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"tokenizer={str(path)!r}: cannot be read as a Hugging Face tokenizer: {first_line}; "
            "expected tokenizer.json, or a folder with tokenizer.json and tokenizer_config.json"
        ) from error


def _digest(path: Path, hf: PreTrainedTokenizerBase, *, eod: int | None) -> str:
    digest = hashlib.sha256(f"{type(hf).__name__} eod={eod} split={hf.split_special_tokens} ".encode())
    if isinstance(hf, PreTrainedTokenizerFast):
        digest.update(hf.backend_tokenizer.to_str().encode())
    else:
        folder = path.parent if path.is_file() else path
        for file in sorted(child for child in folder.iterdir() if child.is_file() and child.suffix != ".safetensors"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _special_tokens(hf: PreTrainedTokenizerBase) -> str:
    known = sorted({str(token) for token in hf.added_tokens_decoder.values()})
    shown = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
    return f"its special tokens: {shown}" if known else "it has no special tokens"


def _near_folder(path: Path) -> str:
    siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    return f"did you mean {str(path.with_name(close[0]))!r}?" if close else "give a local folder; nothing is downloaded"
