"""Writing Hugging Face configs."""

import json
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from ridgeline.core.errors import SpecError
from ridgeline.core.model import (
    Attention,
    Block,
    DynamicRope,
    LatentAttention,
    LinearRope,
    Llama3Rope,
    Mlp,
    ModelSpec,
    Moe,
    Repeat,
    Rope,
    YarnRope,
)
from ridgeline.models.families.table import FAMILIES
from ridgeline.models.hf_config import hf_config_of, model_from_hf
from tests.models.examples import EXAMPLES
from tests.strategies import specs


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


@pytest.mark.parametrize("family", ["glm", "glm4", "glm4_moe", "qwen3_next"])
def test_whole_heads_turn_where_a_family_turns_a_part(family: str):
    """A config without a share would say the family's own: transformers, too, reads the one that is written."""
    spec = model_from_hf({**EXAMPLES[family], "partial_rotary_factor": 1.0})
    written = hf_config_of(spec)
    assert model_from_hf(written, name=spec.name) == spec
    assert AutoConfig.for_model(**written).rope_parameters["partial_rotary_factor"] == 1.0


@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_layers_of_one_kind_alone(kind: str):
    """Qwen3-Next of a few layers has none of the other kind, whose fields are of no layer."""
    config = {**EXAMPLES["qwen3_next"], "num_hidden_layers": 2, "layer_types": [kind] * 2}
    spec = model_from_hf(config)
    assert model_from_hf(hf_config_of(spec), name=spec.name) == spec


@settings(max_examples=50)
@given(st.none() | st.floats(0.1, 10), st.none() | st.floats(1, 300), st.integers(1, 80))
def test_scales_of_any_size_are_written(depth: float | None, base: float | None, layers: int):
    """What MiniCPM's classes divide comes out to the last bit, or nearest where no decimal divides to it."""
    scales = {"scale_depth": depth, "dim_model_base": base, "num_hidden_layers": layers}
    spec = model_from_hf({**EXAMPLES["minicpm"], **scales})
    assert model_from_hf(hf_config_of(spec), name=spec.name) == spec


def test_minicpm3_says_by_how_much_it_is_stretched():
    """Which its class in transformers 5.20 asks for, and later ones reckon alike."""
    spec = model_from_hf(EXAMPLES["minicpm3"])
    written = hf_config_of(spec)
    assert written["rope_scaling"]["factor"] == 64 / 32
    assert model_from_hf(written, name=spec.name) == spec


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
