"""A model with its tokenizer: text in, text out, piece by piece."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ridgeline.apps.runtime.data.tokenizer import TextTokenizer, check_vocabulary, load_tokenizer
from ridgeline.apps.runtime.engine import Cache, Engine, continued, open_engine
from ridgeline.apps.runtime.next_token import Sampling
from ridgeline.checkpoint.io.dist_source import checkpoint_weights
from ridgeline.checkpoint.io.hf import hf_weights
from ridgeline.checkpoint.io.recorded import find_checkpoint, open_record
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.record import model_of
from ridgeline.core.errors import DataError
from ridgeline.core.model import ModelSpec
from ridgeline.kernels.capabilities import DeviceName
from ridgeline.models.hf_config import model_from_hf, read_hf_config, without_quantisation

CUT = "\ufffd"
"""What a tokenizer gives for bytes that do not yet make a character."""


@attrs.frozen(kw_only=True, eq=False)
class TextModel:
    """A model that continues text.

    Attributes:
        engine: The model.
        tokenizer: Its tokenizer.
        stop: Ids that end a text.
    """

    engine: Engine
    tokenizer: TextTokenizer
    stop: frozenset[int]


@attrs.frozen(kw_only=True)
class Source:
    """Where a model comes from.

    Attributes:
        model: What it is.
        weights: Where its weights are read.
        tokenizer: Where its tokenizer is, if the place says so.
        stop: Ids that end a text, if the place says so.
    """

    model: ModelSpec
    weights: Weights
    tokenizer: Path | None
    stop: frozenset[int]


@contextmanager
def open_text_model(
    path: str | Path, *, tokenizer: str | Path | None = None, device: DeviceName = "cpu", dtype: str | None = None
) -> Iterator[TextModel]:
    """Open a model for generation.

    Args:
        path: A Hugging Face folder, a saved step, or the folder of a run: then its latest step.
        tokenizer: By default the folder's own, or the one that the run was trained with.
        device: What it runs on.
        dtype: ``fp32`` or ``bf16``; by default fp32 on a CPU, elsewhere bf16.

    Raises:
        CheckpointError: No weights are there, or they are damaged.
        DataError: There is no tokenizer, or it is not this model's.
    """
    source = source_of(Path(path))
    where = Path(tokenizer) if tokenizer else source.tokenizer
    if where is None:
        raise DataError(f"tokenizer=None: {path} says of none; give the tokenizer's folder")
    text = load_tokenizer(where)
    check_vocabulary(text, source.model.vocab_size)
    stop = source.stop | (frozenset() if text.eod is None else {text.eod})
    dtype = dtype or ("fp32" if device == "cpu" else "bf16")
    with open_engine(source.model, source.weights, device=device, dtype=dtype) as engine:
        yield TextModel(engine=engine, tokenizer=text, stop=stop)


def source_of(path: Path) -> Source:
    """What a path holds: a published model or a checkpoint.

    Raises:
        CheckpointError: Neither.
        SpecError: The config of a published model is not known.
    """
    if (path / "config.json").is_file():
        config = read_hf_config(path)
        model = model_from_hf(without_quantisation(config), name=path.resolve().name)
        return Source(model=model, weights=hf_weights(path, model), tokenizer=path, stop=_stops(path, config))
    step = find_checkpoint(path)
    record = open_record(step)
    model = model_of(record)
    named = record.job.data.tokenizer if record.job else None
    tokenizer = Path(named) if named else None
    return Source(model=model, weights=checkpoint_weights(step, model), tokenizer=tokenizer, stop=frozenset())


def text_after(
    model: TextModel, prompt: str | Sequence[int], sampling: Sampling, *, cache: Cache | None = None
) -> Iterator[str]:
    """The text that follows a prompt, in pieces as it is made.

    Args:
        model: Which continues it.
        prompt: Text, or the token ids of a text with its special tokens.
        sampling: How tokens are chosen.
        cache: Of an earlier text that this one continues.
    """
    ids = model.tokenizer.hf.encode(prompt) if isinstance(prompt, str) else prompt
    return pieces(model.tokenizer.hf, continued(model.engine, ids, sampling, stop=model.stop, cache=cache))


def reply(
    model: TextModel, messages: Sequence[dict[str, str]], sampling: Sampling, *, cache: Cache | None = None
) -> Iterator[str]:
    """The assistant's answer to a conversation, in pieces as it is made.

    Args:
        model: Which answers.
        messages: ``role`` (system, user or assistant) and ``content`` of each, in order.
        sampling: How tokens are chosen.
        cache: Of the turns before: what they share with this one is not read again.

    Raises:
        DataError: The tokenizer has no chat template, or it refuses these messages.
    """
    hf = model.tokenizer.hf
    if not hf.chat_template:
        raise DataError(
            f"tokenizer={str(model.tokenizer.path)!r}: has no chat template, so the model was not made to chat; "
            "use ridgeline generate, or a tokenizer with one"
        )
    try:
        ids = hf.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
    except Exception as error:  # a template is a program, and raises what it likes
        raise DataError(f"tokenizer={str(model.tokenizer.path)!r}: its chat template fails: {error}") from error
    return text_after(model, [int(token) for token in ids], sampling, cache=cache)  # pyright: ignore[reportArgumentType]


def pieces(hf: Any, ids: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come, each piece as soon as its last character is whole; special tokens are left out.

    A token's text can depend on the one before it, so each is decoded together with what was last shown.
    """
    shown: list[int] = []
    new: list[int] = []
    before = after = ""
    for token in ids:
        new.append(token)
        before = hf.decode(shown, skip_special_tokens=True)
        after = hf.decode(shown + new, skip_special_tokens=True)
        if not after.endswith(CUT):
            if len(after) > len(before):
                yield after[len(before) :]
            shown, new = new, []
    if new:
        yield after[len(before) :]


def _stops(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    """The ids that end a text, by the folder's generation_config.json, else by its config."""
    path = folder / "generation_config.json"
    ids = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    ids = config.get("eos_token_id") if ids is None else ids
    return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))
