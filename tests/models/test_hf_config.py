"""Reading Hugging Face configs."""

import dataclasses

import attrs
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ridgeline.core.errors import SpecError
from ridgeline.core.model import Attention, Mlp, ModelSpec, Rope
from ridgeline.core.params import model_params
from ridgeline.models.families.table import ARCHITECTURES, FAMILIES, MODEL_TYPES
from ridgeline.models.hf_config import family_of, hf_config_of, model_from_hf, read_hf_config
from tests.models.examples import EXAMPLES, REMOTE


def test_every_family_is_tried_here():
    """A new family must bring an example config."""
    assert set(EXAMPLES) == set(FAMILIES)


def test_families_are_found_by_every_name_they_have():
    """The table says of each class and model type what its family says, and nothing else."""
    classes = {architecture: name for name, family in FAMILIES.items() for architecture in family.architectures}
    assert classes == ARCHITECTURES
    assert {family.name for family in FAMILIES.values()} == set(FAMILIES)
    assert set(MODEL_TYPES.values()) == set(FAMILIES)


IN_TRANSFORMERS = [name for name in FAMILIES if name not in REMOTE]
# What a transformers class reads besides the architecture.
NEUTRAL = {"use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp", "output_router_logits"}
NEUTRAL |= {"eod_token_id", "sep_token_id"}
NEUTRAL |= {"rope_parameters"}  # read by hf_rope
NEUTRAL |= {f"summary_{what}" for what in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")}


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_no_field_of_the_transformers_class_is_overlooked(name: str):
    """Each field that a family's transformers class declares is in the family's table."""
    cls = type(AutoConfig.for_model(name))
    own = {field.name for field in dataclasses.fields(cls)} - {
        field.name for field in dataclasses.fields(PreTrainedConfig)
    }
    known = {alias for field in FAMILIES[name].fields for alias in (field.name, field.alias)}
    assert own - NEUTRAL <= known


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_a_config_that_transformers_saved_is_the_same_model(name: str, tmp_path):
    """The spelling of transformers 5, read back from its own file, gives the spec of the published spelling."""
    AutoConfig.for_model(**EXAMPLES[name]).save_pretrained(tmp_path)
    saved = read_hf_config(tmp_path)
    assert ("rope_parameters" in saved) == (name not in ("bloom", "gpt2", "mamba2", "nemotron_h"))
    assert "rope_theta" not in saved
    assert model_from_hf(saved) == model_from_hf(EXAMPLES[name])


def test_the_first_files_of_hunyuan_a13b_name_another_type_and_head_size():
    """They were published before transformers had the class: of model_type hunyuan, with attention_head_dim."""
    later = {**EXAMPLES["hunyuan_v1_moe"], "architectures": ["HunYuanMoEV1ForCausalLM"], "head_dim": 12}
    first = {**later, "model_type": "hunyuan", "attention_head_dim": 12}
    del first["head_dim"]
    assert model_from_hf(first) == model_from_hf(later)
    with pytest.raises(SpecError, match="head_dim=12: contradicts attention_head_dim=16"):
        model_from_hf({**later, "attention_head_dim": 16})


def test_llama_without_kv_heads_or_head_dim():
    """The first Llama files give neither: as many key-value heads as heads, and the hidden size shared out."""
    config = {**EXAMPLES["llama"], "num_key_value_heads": None}
    del config["head_dim"]
    assert model_from_hf(config).blocks[0].block.mixer == Attention(
        heads=6, kv_heads=6, head_dim=4, rope=Rope(base=5e5)
    )


def windows(spec: ModelSpec) -> list[int | None]:
    return [block.mixer.window for block in spec.layers()]


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_upper_layers_slide_a_window_when_asked(name: str, tmp_path):
    """use_sliding_window, max_window_layers and layer_types decide per layer as in transformers."""
    asleep = {**EXAMPLES[name], "sliding_window": 16, "max_window_layers": 3, "use_sliding_window": False}
    assert windows(model_from_hf(asleep)) == [None] * 5
    awake = {**asleep, "use_sliding_window": True}
    assert windows(model_from_hf(awake)) == [None, None, None, 16, 16]
    AutoConfig.for_model(**awake).save_pretrained(tmp_path)
    assert model_from_hf(read_hf_config(tmp_path)) == model_from_hf(awake)
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "full_attention"]
    mixed = model_from_hf({**awake, "layer_types": kinds})
    assert windows(mixed) == [16, None, 16, None, None]
    assert AutoConfig.for_model(**hf_config_of(mixed)).layer_types == kinds


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_moe_families_slide_everywhere(name: str):
    """Mixtral and Qwen3-MoE slide one window in all layers."""
    config = {**EXAMPLES[name], "sliding_window": 16, "use_sliding_window": True}
    assert windows(model_from_hf(config)) == [16] * 5


def test_dense_layers_among_experts():
    """A Qwen3-MoE layer is dense off the step and where mlp_only_layers says so."""
    config = {**EXAMPLES["qwen3_moe"], "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    kinds = [block.feed_forward.kind for block in model_from_hf(config).layers()]
    assert kinds == ["mlp", "moe", "mlp", "mlp", "mlp"]
    assert model_from_hf(config).layers()[0].feed_forward == Mlp(ffn_hidden=20)


def test_a_class_of_transformers_serves_two_families():
    """transformers saves InternLM3 as of Llama's class; the model type tells them apart."""
    assert family_of({"architectures": ["LlamaForCausalLM"], "model_type": "internlm3"}).name == "internlm3"
    assert family_of({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).name == "llama"


UNUSED = {"longcat_flash": 2 * 2 * 2 * 12 * 24}  # transformers allots gate and up to its zero experts too


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_an_example_has_the_parameters_of_the_transformers_model(name: str):
    """To the parameter; expert biases are buffers there, and there is no multi-token prediction."""
    spec = attrs.evolve(model_from_hf(EXAMPLES[name]), mtp=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**EXAMPLES[name]))
    theirs = sum(tensor.numel() for tensor in model.parameters()) - UNUSED.get(name, 0)
    assert theirs == sum(param.elements for _, param in model_params(spec) if param.trains)
