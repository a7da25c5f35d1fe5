"""Step-3.5-Flash's config and files beyond what transformers has of them."""

import json
from typing import Any

import attrs
import pytest
from transformers import AutoConfig

from ridgeline.core.errors import SpecError
from ridgeline.models.hf_config import hf_config_of, model_from_hf
from ridgeline.models.hf_names import hf_derived, hf_shapes
from tests.models.examples import EXAMPLES

ALONE = EXAMPLES["step3p5"]
AHEAD = {
    **ALONE,
    "num_nextn_predict_layers": 2,
    "layer_types": [*ALONE["layer_types"], *["sliding_attention"] * 2],
    "rope_theta": [*ALONE["rope_theta"], 10000, 10000],
    "partial_rotary_factors": [*ALONE["partial_rotary_factors"], 1.0, 1.0],
    "swiglu_limits": [*ALONE["swiglu_limits"], 0.0, 0.0],
    "swiglu_limits_shared": [*ALONE["swiglu_limits_shared"], 0.0, 0.0],
}
"""As published: lists go on over the layers that predict further tokens."""
OF_A_LAYER = {
    *(f"{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "input_layernorm", "post_attention_layernorm")),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *(f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "g_proj", "q_norm", "k_norm")),
    "transformer.shared_head.norm.weight",
    "transformer.shared_head.output.weight",
}
"""The 17 tensors of each such layer in the published index (sgl-project/sglang-jax, tests of step3p5_nextn)."""


def test_layers_that_look_ahead_have_a_block_of_their_own():
    """Sliding attention and an MLP, whatever the last layer is; they read before norms."""
    spec = model_from_hf(AHEAD)
    assert (spec.mtp, spec.num_layers, spec.mtp_before_norm) == (2, 5, True)
    sliding, dense = spec.layers()[1].mixer, spec.layers()[0].feed_forward
    assert (spec.block_ahead.mixer, spec.block_ahead.feed_forward) == (sliding, dense)
    assert attrs.evolve(spec, mtp=0, mtp_block=None) == model_from_hf(ALONE)


@pytest.mark.parametrize("config", [ALONE, AHEAD], ids=["alone", "ahead"])
def test_configs_of_both_spellings_are_the_same_model(config: dict[str, Any]):
    """The one we write, and the one transformers makes of the published one and of ours."""
    spec = model_from_hf(config)
    assert model_from_hf(json.loads(json.dumps(hf_config_of(spec)))) == spec
    for written in (config, hf_config_of(spec)):
        theirs = AutoConfig.for_model(**written).to_json_string(use_diff=False)
        assert model_from_hf({**json.loads(theirs), "architectures": None}) == spec


def test_tensors_of_a_layer_that_looks_ahead_are_those_published():
    """Its head is the model's, held again."""
    spec = model_from_hf(AHEAD)
    for layer in (5, 6):
        own = f"model.layers.{layer}."
        known = {name.removeprefix(own) for name in {*hf_shapes(spec), *hf_derived(spec)} if name.startswith(own)}
        assert {name.removeprefix(own) for name in hf_shapes(spec) if name.startswith(own)} <= OF_A_LAYER <= known
    assert hf_shapes(spec)["model.layers.2.moe.gate_proj.weight"] == (7, 12, 24)
    assert hf_shapes(spec)["model.layers.2.moe.down_proj.weight"] == (7, 24, 12)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"moe_layers_enum": None}, "moe_layers_enum=None: must say which layers hold experts"),
        ({"yarn_only_types": None}, "yarn_only_types=None: must say which layers rope_scaling is of"),
        ({"yarn_only_types": ["sliding_attention"]}, r"yarn_only_types=\['sliding_attention'\]: is not modelled"),
        ({"rope_theta": [5e5, 1e4, 2e4, 1e4, 5e5]}, "rope_theta=.*: must hold a number for each of 5 layers, the same"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types=.*: must name 5 layers"),
        ({"swiglu_limits": [7.0]}, r"swiglu_limits=\[7.0\]: must hold a number for each of num_hidden_layers=5 layers"),
        ({"sink": True}, "sink=True: is not modelled"),
        ({"use_rope_layers": [1]}, r"use_rope_layers=\[1\]: is not modelled"),
        ({"per_layer_config": {"1": {"head_dim": 4}}}, "per_layer_config=.*: must give sliding layers"),
        ({"attention_other_setting": {"num_attention_groups": 1}}, "attention_other_setting.num_attention_groups=1"),
        ({"query_pre_attn_scalar": 9}, "query_pre_attn_scalar=9.0: is not modelled but as head_dim=8"),
    ],
)
def test_what_is_not_modelled_is_refused(change: dict[str, Any], told: str):
    with pytest.raises(SpecError, match=told):
        model_from_hf({**ALONE, **change})


def test_layers_that_look_ahead_are_alike_or_refused():
    mixed = [*ALONE["layer_types"], "sliding_attention", "full_attention"]
    theta, share = [*AHEAD["rope_theta"][:6], 500000], [*AHEAD["partial_rotary_factors"][:6], 0.5]
    with pytest.raises(SpecError, match=r"mtp_layer_types=.*: must be alike in all layers of multi-token prediction"):
        model_from_hf({**AHEAD, "layer_types": mixed, "rope_theta": theta, "partial_rotary_factors": share})
