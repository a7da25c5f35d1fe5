"""A model that continues tokens, of every family: what it remembers changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ridgeline.apps.runtime.engine import Cache, new_cache, next_logits, open_engine
from ridgeline.checkpoint.io.hf import hf_weights
from ridgeline.models.families.table import FAMILIES
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from ridgeline.models.hf_names import hf_shapes
from tests.models.examples import EXAMPLES
from tests.pool import Pool

LENGTHS = (12, 13, 14, 17, 31, 32, 33, 34, 36, 20, 21, 35)
"""Of the texts, one after the other: a token more, several at once, fewer; on both sides of 16 and 32, where the rotary
positions of some examples change."""

LIKE_OTHERS = ("aquila", "gemma", "glm", "glm_moe_dsa", "internlm", "llama", "minicpm", "mistral", "qwen", "qwen2")
"""Families whose parts all stand in others that are tried every day."""


def save_random(folder: Path, family: str) -> None:
    """A family's example with random tensors under their published names, norms around 1."""
    config = EXAMPLES[family]
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in hf_shapes(model_from_hf(config)).items():
        noise = torch.randn(shape, generator=generator) * 0.2
        tensors[name] = noise + 1 if len(shape) == 1 and name.endswith("weight") else noise
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def differences_in_rank(folder: str) -> tuple[list[float], list[float]]:
    """Of each text the largest difference that the cache makes to its logits, and the last tokens; over the largest."""
    model = model_from_hf(read_hf_config(folder))
    text = torch.randint(0, model.vocab_size, (max(LENGTHS),), generator=torch.Generator().manual_seed(3)).tolist()
    by_cache, by_text, before = [], [], torch.zeros(())
    with open_engine(model, hf_weights(folder, model)) as engine:
        cache = new_cache(engine)
        for length in LENGTHS:
            without = next_logits(engine, text[:length], Cache(model.max_position))
            changes = next_logits(engine, text[:length], cache) - without, before - without
            for changed, change in zip((by_cache, by_text), changes, strict=True):
                changed.append(float(change.abs().max() / without.abs().max()))
            before = without
    return by_cache, by_text


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.full if name in LIKE_OTHERS else ())
        for name in FAMILIES
        if FAMILIES[name].weights is not None
    ],
)
def test_a_cache_changes_nothing(ranks: Pool, tmp_path: Path, family: str) -> None:
    """Logits with earlier keys, values and states are those of reading the whole text again, in fp32."""
    save_random(tmp_path, family)
    ((by_cache, by_text),) = ranks.run(differences_in_rank, 1, str(tmp_path))
    assert max(by_cache) < 1e-4  # a delta rule's sums in another order differ by 3e-5
    assert min(by_text) > 0.05
