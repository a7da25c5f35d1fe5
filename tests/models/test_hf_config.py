"""Reading and writing Hugging Face configs."""

import dataclasses
import json
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ridgeline.core.errors import SpecError
from ridgeline.core.model import (
    Attention,
    Block,
    DynamicRope,
    LatentAttention,
    LinearRope,
    Llama3Rope,
    LongRope,
    Mlp,
    ModelSpec,
    Moe,
    Repeat,
    Rope,
    YarnRope,
)
from ridgeline.core.params import model_params
from ridgeline.models.families.table import ARCHITECTURES, FAMILIES, MODEL_TYPES
from ridgeline.models.hf_config import family_of, hf_config_of, model_from_hf, read_hf_config
from tests.models.examples import EXAMPLES, REMOTE
from tests.strategies import specs


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


# Refusals


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
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs between layers"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn': must be a table"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling.factor='4': must be a number"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor=None: the config must give it"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: is not modelled"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4, "original_max_position_embeddings": 8}},
            "original_max_position_embeddings=8: must be max_position_embeddings=64",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: is not modelled; known: 1.0"),
        ({"rope_scaling": {"type": "longrope", **LONG}}, "original_max_position_embeddings=None: the config must give"),
        (
            {"rope_scaling": {"type": "longrope", **ROPES["longrope"], "factor": 3.0}},
            "factor=3.0: must be max_position_embeddings/original_max_position_embeddings=4",
        ),
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
        ("phi3", {"rope_scaling": ROPES["linear"] | {"type": "linear"}}, "must be 'longrope'; use it or none"),
        ("phi3", {"rope_scaling": {"type": "longrope", **LONG}}, "short_factor=4: must hold one factor for each of 2"),
        ("minicpm3", {"scale_emb": None}, "scale_emb=None: the config must give it"),
        ("internlm3", {"bias": False}, "qkv_bias=True: must be bias=False, as transformers wants it"),
    ],
)
def test_what_a_family_cannot_model_is_refused(name: str, change: dict[str, Any], message: str):
    """Each family names what its own files could say otherwise."""
    with pytest.raises(SpecError) as caught:
        model_from_hf({**EXAMPLES[name], **change})
    assert message in str(caught.value)


def test_a_class_of_transformers_serves_two_families():
    """transformers saves InternLM3 as of Llama's class; the model type tells them apart."""
    assert family_of({"architectures": ["LlamaForCausalLM"], "model_type": "internlm3"}).name == "internlm3"
    assert family_of({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).name == "llama"


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


UNUSED = {"longcat_flash": 2 * 2 * 2 * 12 * 24}  # transformers allots gate and up to its zero experts too


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_an_example_has_the_parameters_of_the_transformers_model(name: str):
    """To the parameter; expert biases are buffers there, and there is no multi-token prediction."""
    spec = attrs.evolve(model_from_hf(EXAMPLES[name]), mtp=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**EXAMPLES[name]))
    theirs = sum(tensor.numel() for tensor in model.parameters()) - UNUSED.get(name, 0)
    assert theirs == sum(param.elements for _, param in model_params(spec) if param.trains)


# The way back


def plain(cls: type[Any], **fixed: Any) -> st.SearchStrategy[Any]:
    """Every valid spec of a class without any trait."""
    traits = {field.name: st.just(field.default) for field in attrs.fields(cls) if "quiet" in field.metadata}
    return specs(cls, **{**traits, **fixed})


def plain_models(name: str) -> st.SearchStrategy[ModelSpec]:
    """Small models that the family can express."""
    family = FAMILIES[name]
    length = 64
    scaling = (
        st.none()
        | specs(LinearRope)
        | plain(DynamicRope, original_max_position=st.just(length))
        | specs(Llama3Rope)
        | specs(YarnRope, attention_factor=st.none(), mscale=st.floats(0, 2), mscale_all_dim=st.none())
    )
    bias = st.booleans() if name in ("llama", "qwen3", "qwen3_moe") else st.just(name == "qwen2")
    # One attention for all layers; the hidden size a multiple of any number of heads.
    attention = st.builds(
        lambda heads, bias: attrs.evolve(heads, qkv_bias=bias, out_bias=bias and name != "qwen2"),
        plain(
            Attention,
            qk_norm=st.just("qwen3" in name),
            window=st.none() | st.integers(1, 32) if name != "llama" else st.none(),
            rope=plain(Rope, scaling=scaling),
        ),
        bias,
    )
    swiglu = st.just("swiglu")
    mlp = plain(Mlp, activation=swiglu, bias=st.booleans() if name == "llama" else st.just(False))
    normalize = st.just(True) if name == "mixtral" else st.booleans()
    moe = plain(Moe, activation=swiglu, normalize_topk=normalize)

    def model(
        attention: Attention, mlp: Mlp, moe: Moe, pattern: list[tuple[bool, bool]], shell: ModelSpec
    ) -> ModelSpec:
        def run(dense: bool, wide: bool) -> Repeat:
            mixer = attrs.evolve(attention, window=None) if wide and name in ("qwen2", "qwen3") else attention
            dense = dense if len(family.feed_forwards) > 1 else family.feed_forwards == (Mlp,)
            return Repeat(block=Block(mixer=mixer, feed_forward=mlp if dense else moe), count=1)

        runs = tuple(run(dense, wide) for dense, wide in [(False, False), *pattern])
        return attrs.evolve(shell, blocks=runs, family=name)

    shell = plain(
        ModelSpec, hidden=st.integers(1, 9).map(lambda n: n * 5040), max_position=st.just(length), mtp=st.just(0)
    )
    return st.builds(model, attention, mlp, moe, st.lists(st.tuples(st.booleans(), st.booleans()), max_size=4), shell)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_example_of_a_family_survives_its_own_config(name: str):
    """Config to spec to config to spec is the same spec, through JSON text."""
    spec = model_from_hf(EXAMPLES[name])
    assert model_from_hf(json.loads(json.dumps(hf_config_of(spec)))) == spec


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2", "qwen3", "qwen3_moe"])
def test_spec_to_config_to_spec_is_the_identity(name: str):
    """A model of a family survives its own config, through JSON text."""

    @settings(deadline=None, max_examples=25)
    @given(plain_models(name))
    def holds(spec: ModelSpec):
        config = json.loads(json.dumps(hf_config_of(spec)))
        assert model_from_hf(config, name=spec.name) == spec

    holds()


FEW_BLOCKS = st.lists(specs(Repeat, count=st.integers(1, 3)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(specs(ModelSpec, blocks=FEW_BLOCKS), st.sampled_from(sorted(FAMILIES)))
def test_no_config_is_written_that_means_another_model(spec: ModelSpec, family: str):
    """For any model at all: its config reads back equal, or writing it is refused."""
    spec = attrs.evolve(spec, family=family)
    try:
        config = hf_config_of(spec)
    except SpecError:
        return
    assert model_from_hf(config, name=spec.name) == spec


def _llama(**changes: Any) -> ModelSpec:
    return attrs.evolve(model_from_hf(EXAMPLES["llama"]), **changes)


def _with(spec: ModelSpec, block: Block, layer: int) -> ModelSpec:
    blocks = list(spec.layers())
    blocks[layer] = block
    return attrs.evolve(spec, blocks=tuple(Repeat(block=one, count=1) for one in blocks))


def test_what_a_family_cannot_express_is_named():
    """Writing refuses the first field that would be lost, with what it would become."""
    spec = _llama()
    block = spec.blocks[0].block
    latent = LatentAttention(heads=2, kv_lora_rank=4, nope_head_dim=4, rope_head_dim=4, v_head_dim=4)
    wide = attrs.evolve(block, feed_forward=Mlp(ffn_hidden=21))
    normed = attrs.evolve(block, mixer=attrs.evolve(block.mixer, qk_norm=True))
    cases = {
        "mtp=1: cannot be written as family='llama', which would make it 0": _llama(mtp=1),
        "family='custom': has no Hugging Face class; known: aquila, baichuan, ": _llama(family="custom"),
        "layers[2].feed_forward.ffn_hidden=21: cannot be written as family='llama', which would": _with(spec, wide, 2),
        "layers[0].mixer.qk_norm=True: cannot be written as family='llama'": _with(spec, normed, 0),
        "blocks[1].block.mixer.kind='latent_attention': cannot be written": _with(
            spec, attrs.evolve(block, mixer=latent), 3
        ),
        "blocks[0].block.feed_forward.kind='mlp': cannot be written as family='mixtral'; known: moe": _llama(
            family="mixtral"
        ),
        "family='qwen3_moe': needs a layer of kind='moe'": _llama(family="qwen3_moe"),
    }
    for message, model in cases.items():
        with pytest.raises(SpecError) as caught:
            hf_config_of(model)
        assert message in str(caught.value)


def test_a_z_loss_survives():
    """The z-loss that transformers has no field for is kept in one it does not read."""
    spec = model_from_hf({**EXAMPLES["mixtral"], "router_z_loss_coef": 0.001})
    assert spec.blocks[0].block.feed_forward.z_loss == 0.001
    assert AutoConfig.for_model(**hf_config_of(spec)).router_z_loss_coef == 0.001


def test_no_token_ids_are_invented():
    """A written config leaves the token ids open, where transformers' class would put Llama 2's."""
    config = AutoConfig.for_model(**hf_config_of(_llama()))
    assert config.bos_token_id is None
    assert config.eos_token_id is None
