"""A checkpoint against transformers: the same tokens through both, and how far their logits are apart."""

from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from ridgeline.apps.runtime.engine import new_cache, next_logits, open_engine
from ridgeline.apps.runtime.text_model import source_of
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec

TOKENS = 24
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-3}
"""Relative to the largest logit: weights rounded to a dtype move logits by about its precision."""


@attrs.frozen(kw_only=True)
class Agreement:
    """How two models agree on the next token after each of some tokens.

    Attributes:
        difference: The largest of a logit, relative to the largest logit.
        same_choice: Share of positions where the likeliest token is the same.
        dtype: Of the folder's weights.
    """

    difference: float
    same_choice: float
    dtype: str

    @property
    def good(self) -> bool:
        """Whether the difference is within what the dtype explains."""
        return self.difference <= TOLERANCE[self.dtype]


def compare_with_transformers(ours: str | Path, folder: str | Path) -> Agreement:
    """Run a model of ours (a checkpoint, a run or a folder) and a Hugging Face folder under transformers, both in fp32.

    Raises:
        CheckpointError: They are not of one vocabulary, or either cannot be read.
    """
    source = source_of(Path(ours))
    tokens = some_tokens(source.model)
    theirs_sv, dtype = _transformers_logits(Path(folder), tokens)
    if theirs_sv.shape[1] != source.model.vocab_size:
        rule = f"gives {theirs_sv.shape[1]} logits, {ours} has vocab_size={source.model.vocab_size}"
        raise CheckpointError(f"folder={folder}: {rule}; it is of another model")
    with open_engine(source.model, source.weights) as engine:
        cache = new_cache(engine)
        ours_sv = torch.stack([next_logits(engine, tokens[: end + 1], cache) for end in range(len(tokens))])
    difference = (ours_sv - theirs_sv).abs().max() / theirs_sv.abs().max()
    same = (ours_sv.argmax(-1) == theirs_sv.argmax(-1)).float().mean()
    return Agreement(difference=float(difference), same_choice=float(same), dtype=dtype)


def some_tokens(model: ModelSpec) -> list[int]:
    """Tokens from all over the vocabulary, always the same."""
    generator = torch.Generator().manual_seed(0)
    count = min(TOKENS, model.max_position - 1)
    return torch.randint(model.vocab_size, (count,), generator=generator).tolist()


def _transformers_logits(folder: Path, tokens: Sequence[int]) -> tuple[torch.Tensor, str]:
    """Logits after each token, (s, vocabulary), and the dtype of the folder's weights."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bars are of a second's work
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"folder={folder}: transformers cannot load it: {error}") from error
    with torch.no_grad():
        logits_bsv = model(torch.tensor([list(tokens)])).logits
    return logits_bsv[0], str(config.dtype or torch.float32).removeprefix("torch.")
