"""Rotary positions of Hugging Face configs."""

from typing import Any

import pytest
from transformers import AutoConfig

from ridgeline.core.errors import SpecError
from ridgeline.core.model import Attention, DynamicRope, LinearRope, Llama3Rope, LongRope, Rope, YarnRope
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.models.examples import EXAMPLES

LONG = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 4.0, 5.0]}
ROPES = {
    "longrope": {**LONG, "original_max_position_embeddings": 16},
    "linear": {"factor": 2},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16, "mscale": 0.5},
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_scalings_in_every_spelling(kind: str, key: str, tmp_path):
    """A scaling reads alike from transformers 4's two spellings and from what transformers 5 saves."""
    config = {**EXAMPLES["qwen2"], "rope_scaling": {key: kind, **ROPES[kind]}}
    AutoConfig.for_model(**config).save_pretrained(tmp_path)
    spec = model_from_hf(config)
    assert model_from_hf(read_hf_config(tmp_path)) == spec
    attention = spec.blocks[0].block.mixer
    assert isinstance(attention, Attention)
    expected = {
        "longrope": LongRope(
            short_factors=(1.0, 1.5, 2.0, 2.5), long_factors=(1.0, 3.0, 4.0, 5.0), original_max_position=16
        ),
        "linear": LinearRope(factor=2),
        "dynamic": DynamicRope(factor=4, original_max_position=64),
        "llama3": Llama3Rope(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position=16),
        "yarn": YarnRope(factor=4, original_max_position=16, beta_fast=16, mscale=0.5),
    }
    assert attention.rope == Rope(base=500000.0, scaling=expected[kind])


def test_original_length_defaults_to_the_models_own():
    """A yarn config without the original length means max_position_embeddings, as in transformers."""
    config = {**EXAMPLES["llama"], "rope_scaling": {"type": "yarn", "factor": 2.0}}
    rope = model_from_hf(config).blocks[0].block.mixer.rope
    assert rope.scaling == YarnRope(factor=2.0, original_max_position=64)


def test_mixtral_without_a_base_has_its_class_default():
    """transformers reads a Mixtral config that gives no rope_theta with base 1e6, a Llama one with 1e4."""
    for name, base in (("mixtral", 1e6), ("llama", 1e4)):
        config = {key: value for key, value in EXAMPLES[name].items() if key != "rope_theta"}
        assert AutoConfig.for_model(**config).rope_parameters["rope_theta"] == base
        assert model_from_hf(config).blocks[0].block.mixer.rope == Rope(base=base)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs between layers"),
        ("llama", {"rope_scaling": "yarn"}, "rope_scaling='yarn': must be a table"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling.factor='4': must be a number"),
        ("llama", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor=None: the config must give it"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 4, "original_max_position_embeddings": 8}},
            "original_max_position_embeddings=8: must be max_position_embeddings=64",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: is not modelled; known: 1.0"),
        (
            "llama",
            {"rope_scaling": {"type": "longrope", **LONG}},
            "original_max_position_embeddings=None: the config must give",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "longrope", **ROPES["longrope"], "factor": 3.0}},
            "factor=3.0: must be max_position_embeddings/original_max_position_embeddings=4",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            "rope_parameters.rope_theta=10000.0: contradicts rope_theta=500000.0 beside the table; keep one",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type='dynamic': contradicts type='linear'; keep one",
        ),
        ("phi3", {"rope_scaling": ROPES["linear"] | {"type": "linear"}}, "must be 'longrope'; use it or none"),
        ("phi3", {"rope_scaling": {"type": "longrope", **LONG}}, "short_factor=4: must hold one factor for each of 2"),
    ],
)
def test_positions_that_cannot_be_modelled_are_refused(name: str, change: dict[str, Any], message: str):
    """A scaling that lacks a number, contradicts the lengths or is not the family's is named, never passed over."""
    with pytest.raises(SpecError) as caught:
        model_from_hf({**EXAMPLES[name], **change})
    assert message in str(caught.value)
