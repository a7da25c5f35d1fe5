"""Hugging Face configs that are damaged, contradict themselves or say what is not modelled."""

import contextlib
from typing import Any

import pytest

from ridgeline.core.errors import SpecError
from ridgeline.models.hf_config import family_of, model_from_hf, read_hf_config
from tests.models.examples import EXAMPLES


def test_all_faults_of_a_config_come_at_once():
    """Missing, mistyped and unmodelled fields are reported together, each by its published name."""
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": "40",
        "hidden_size": 0,
        "num_hidden_layers": True,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 8,
        "num_local_experts": 4,
        "num_experts": 8,
        "hidden_act": "gelu",
        "router_jitter_noise": 0.1,
        "rope_scaling": {"rope_type": "ntk", "factor": 2.0},
    }
    with pytest.raises(SpecError) as caught:
        model_from_hf(config)
    assert [str(problem) for problem in caught.value.problems] == [
        "vocab_size='40': must be an integer",
        "hidden_size=0: must be >= 1",
        "num_hidden_layers=True: must be an integer",
        "hidden_act='gelu': is not modelled; known: 'silu'",
        "num_local_experts=4: contradicts num_experts=8",
        "num_experts_per_tok=None: the config must give it",
        "router_jitter_noise=0.1: is not modelled; known: 0.0",
        "rope_scaling.rope_type='ntk': unknown; known: default, dynamic, linear, llama3, longrope, yarn",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads=4: must divide num_attention_heads=6; use 1, 2, 3 or 6"),
        ({"hidden_size": 25}, "hidden_size=25: must be a multiple of num_attention_heads=6"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1: is not modelled"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config={'quant_method': 'fp8'}: is not modelled",
        ),
    ],
)
def test_what_cannot_be_modelled_is_refused(change: dict[str, Any], message: str):
    """A contradiction or a feature that is not modelled is named, never passed over."""
    with pytest.raises(SpecError) as caught:
        model_from_hf({**EXAMPLES["llama"], **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("minicpm3", {"scale_emb": None}, "scale_emb=None: the config must give it"),
        ("internlm3", {"bias": False}, "qkv_bias=True: must be bias=False, as transformers wants it"),
        ("qwen3_next", {"layer_types": []}, "layer_types=[]: must name num_hidden_layers=5 layers"),
        ("gemma2", {"layer_types": []}, "layer_types=[]: must name num_hidden_layers=5 layers"),
        ("deepseek_v32", {"indexer_types": []}, "indexer_types=[]: must be all 'full'"),
        ("deepseek_v32", {"layer_types": [["full"]]}, "layer_types=[['full']]: must be a list, each text"),
        ("hunyuan", {"moe_topk": ["1"]}, "moe_topk=['1']: must be an integer or a list, each an integer"),
        ("phi3", {"max_position_embeddings": "64"}, "max_position_embeddings='64': must be an integer"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type=None: the config must give it beside fac"),
        ("grok-1", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "is not modelled; known: None"),
        (
            "hunyuan_v1_dense",
            {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": "x"}},
            "rope_scaling.alpha='x': must be a number",
        ),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 2.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
            "high_freq_factor=4.0: must be > low_freq_factor=4.0",
        ),
    ],
)
def test_what_a_family_cannot_model_is_refused(name: str, change: dict[str, Any], message: str):
    """Each family names what its own files could say otherwise."""
    with pytest.raises(SpecError) as caught:
        model_from_hf({**EXAMPLES[name], **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention"]}, "must name num_hidden_layers=5 layers"),
        ({"layer_types": ["chunked_attention"] * 5}, "must hold only full_attention and sliding_attention"),
        ({"layer_types": ["sliding_attention"] * 5}, "needs use_sliding_window and a sliding_window"),
    ],
)
def test_contradictory_layer_types(change: dict[str, Any], message: str):
    """Layer types that do not fit the rest of the config are refused."""
    with pytest.raises(SpecError, match=message):
        model_from_hf({**EXAMPLES["qwen3"], **change})


ODD = (None, "", "3", -1, 0, 3, 0.5, True, [], [1], ["a"], [[1]], {}, {"a": 1}, 2**70)


@pytest.mark.parametrize("name", EXAMPLES)
def test_whatever_a_field_holds_is_read_or_refused(name: str):
    """A value of any type in any field, or in the table of rotary positions, makes a model or a `SpecError`."""
    config = EXAMPLES[name]
    table = config.get("rope_scaling") or {"rope_type": "yarn", "factor": 2.0}
    inner = {"rope_type", "factor", "alpha", "original_max_position_embeddings", "short_factor", "rope_theta"}
    changes = [{field.name: odd} for field in family_of(config).fields for odd in ODD]
    changes += [{"rope_scaling": {**table, field: odd}} for field in inner for odd in ODD]
    for change in changes:
        with contextlib.suppress(SpecError):
            model_from_hf({**config, **change})


def test_a_dense_layer_needs_its_width():
    """A Qwen3-MoE config with dense layers must say how wide they are."""
    config = {**EXAMPLES["qwen3_moe"], "intermediate_size": None}
    with pytest.raises(SpecError, match=r"intermediate_size=None: the config must give it for dense layers \[1, 3\]"):
        model_from_hf(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["Qwen2ForCausalLm"]},
            "architectures='Qwen2ForCausalLm': unknown; did you mean 'Qwen2ForCausalLM'? known: Qwen2For",
        ),
        ({"architectures": ["Qwen2ForSequenceClassification"], "model_type": "qwen2"}, "architectures='Qwen2ForSeq"),
        ({"model_type": "qwen3_nxt"}, "model_type='qwen3_nxt': unknown; did you mean 'qwen3"),
        ({}, "model_type=None: unknown; known: aquila, baichuan, "),
        ({"model_type": ["llama"]}, "model_type=['llama']: unknown"),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
            "model_type='mistral': contradicts architectures='LlamaForCausalLM', which is of 'llama'",
        ),
    ],
)
def test_an_unknown_architecture_is_refused(config: dict[str, Any], message: str):
    """The near match and the known list come with it."""
    with pytest.raises(SpecError) as caught:
        family_of(config)
    assert message in str(caught.value)


def test_a_file_that_is_no_config_is_refused(tmp_path):
    """A missing file, one that is not JSON and one that is no object are each named."""
    with pytest.raises(
        SpecError, match=r"cannot be read: No such file or directory; give a folder that holds a config"
    ):
        read_hf_config(tmp_path)
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama"')
    with pytest.raises(SpecError, match=r"config\.json': is not JSON: Input data was truncated"):
        read_hf_config(tmp_path)
    file.write_bytes(b'{"model_type": "\xff\xfe"}')
    with pytest.raises(SpecError, match=r"is not JSON"):
        read_hf_config(file)
    file.write_text("[1]")
    with pytest.raises(SpecError, match=r"must hold a JSON object"):
        read_hf_config(file)
