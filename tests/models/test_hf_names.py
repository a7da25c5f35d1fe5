"""Published names and shapes, against transformers' own models and files."""

import json
import re
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ridgeline.core.errors import SpecError
from ridgeline.core.model import Moe, is_gated
from ridgeline.core.params import fqn_of, model_params
from ridgeline.models.families.table import FAMILIES
from ridgeline.models.hf_config import family_of, hf_config_of, model_from_hf
from ridgeline.models.hf_names import hf_derived, hf_shapes, hf_sources
from ridgeline.models.hf_source import (
    Direct,
    GateUp,
    GroupedQkv,
    Rows,
    RowSource,
    Source,
    Stacked,
    StackedRows,
    Transposed,
    published_shapes,
    row_runs,
)
from ridgeline.models.zoo import model_names, model_preset
from tests.models.examples import EXAMPLES, REMOTE, VARIANTS
from tests.models.transformers_models import built, size_of, unused_params

CONFIGS = {
    name: {**config, **({"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in config else {})}
    for name, config in {**EXAMPLES, **VARIANTS}.items()
    if family_of(config).weights
}
"""Without multi-token prediction, which transformers' classes have not."""


def published_files(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random published tensors of a model, by the names and shapes we say they have."""
    generator = torch.Generator().manual_seed(0)
    shapes = hf_shapes(model_from_hf(config))
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def unused_rows(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gate and up of zero experts, which transformers allots, so that files it reads need them."""
    derived = hf_derived(model_from_hf(config))
    names = [name for name in derived if name.startswith("model.layers.") and ".mlp.experts." in name]
    return {name: torch.zeros(config["expert_ffn_hidden_size"], config["hidden_size"]) for name in names}


@pytest.mark.parametrize("example", [name for name in CONFIGS if CONFIGS[name]["model_type"] not in REMOTE])
def test_transformers_loads_and_saves_these_names(example: str, tmp_path):
    """A folder of our names and shapes loads whole, saves back the same files, and reads back as the same model."""
    config = CONFIGS[example]
    tensors = published_files(config) | unused_rows(config)
    (tmp_path / "config.json").write_text(json.dumps(hf_config_of(model_from_hf(config))))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert {kind: list(names) for kind, names in info.items() if names} == {}
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in hf_derived(model_from_hf(config))}
    assert sum(tensor.numel() for tensor in state.values()) == sum(tensor.numel() for tensor in tensors.values())
    model.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "model.safetensors", "pt") as file:
        again = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (the file is no mapping)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


FEED_FORWARDS = {name: [run.block.feed_forward for run in model_from_hf(CONFIGS[name]).blocks] for name in CONFIGS}
GATED_EXPERTS = [
    name
    for name in CONFIGS
    if any(isinstance(part, Moe) and is_gated(part.activation) for part in FEED_FORWARDS[name])
    if CONFIGS[name]["model_type"] not in REMOTE
]
"""Beside layers, where transformers fuses others with them, logits and gradients tell."""


@pytest.mark.parametrize("example", GATED_EXPERTS)
def test_gate_and_up_of_an_expert_are_not_swapped(example: str, tmp_path):
    """transformers' fused experts hold gate above up; so does our linear_fc1 made of the same files."""
    config = CONFIGS[example]
    spec, tensors = model_from_hf(config), published_files(config)
    (tmp_path / "config.json").write_text(json.dumps(hf_config_of(spec)))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    checked = 0
    for layer, block in enumerate(spec.layers()):
        if not isinstance(block.feed_forward, Moe):
            continue
        fused = model.model.layers[layer].mlp.experts.gate_up_proj
        for expert in range(block.feed_forward.experts):
            source = hf_sources(spec)[f"decoder.layers.{layer}.mlp.experts.local_experts.{expert}.linear_fc1.weight"]
            if isinstance(source, Stacked):  # gate and up in turn, transposed
                ours = torch.cat((fused[expert][:, ::2], fused[expert][:, 1::2]), 1).T
                rows = torch.cat([tensors[source.name][expert].T[turn :: source.turns] for turn in range(source.turns)])
                assert torch.equal(rows, ours)
            elif isinstance(source, StackedRows):
                assert torch.equal(torch.cat([tensors[name][expert] for name in source.names]), fused[expert])
            else:
                assert torch.equal(assembled(source, tensors), fused[expert])
            checked += 1
    assert checked >= 8


def assembled(source: RowSource, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    names = {Direct: ("name",), GateUp: ("gate", "up"), GroupedQkv: ("q", "k", "v"), Rows: ()}[type(source)]
    rows = sum(tensors[getattr(source, name)].shape[0] for name in names)
    return torch.cat([tensors[run.tensor][run.start : run.start + run.count] for run in row_runs(source, rows)])


BIAS = ".mlp.gate.e_score_correction_bias"
LIKE_OTHERS = ("deepseek-r1", "deepseek-v2", "deepseek-v2.5", "deepseek-coder-v2-base", "kimi-k2", "glm-4.5", "glm-5")
"""Larger models, named as smaller ones are."""
ROOT_IN_FILES = {"nemotron_h": "backbone."}
"""What files say where transformers' class says ``model.``; it converts when it reads and writes."""
NAMED = [
    name
    for name in model_names()
    if size_of(name) == name and name not in LIKE_OTHERS and FAMILIES[model_preset(name).family].weights
]
KNOWN = [name for name in NAMED if model_preset(name).family not in REMOTE]


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_shapes_of_every_size(name: str):
    """Each published tensor is used once, and the dense ones are transformers' own state, name by name."""
    spec = model_preset(name)
    shapes, sources = hf_shapes(spec), hf_sources(spec)
    used = [place for source in sources.values() for place in used_by(source)]
    assert len(used) == len(set(used))
    assert {name for name, _ in used} == shapes.keys()
    root = ROOT_IN_FILES.get(spec.family, "model.")
    state = {re.sub(r"^model\.", root, key): shape for key, shape in built(name).shapes.items()}
    state = {key: shape for key, shape in state.items() if key not in hf_derived(spec)}
    # block_sparse_moe in some files, and the router a gate
    parts = (".mlp.experts.", ".mlp.gate.weight", ".mlp.router.weight", ".mlp.e_score_correction_bias")
    experts = [key for key in state if any(part in key for part in parts)]
    further = tuple(f"model.layers.{spec.num_layers + index}." for index in range(spec.mtp))  # transformers has none
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(further or ("-",))}
    for published, own in ((".share_expert.", ".mlp.shared_experts."), (".moe.router_bias", BIAS)):
        shapes = {key.replace(published, own): shape for key, shape in shapes.items()}
    elsewhere = (".moe.", ".experts.", ".gate.weight", ".mlp.router.weight", "block_sparse_moe.e_score_correction_bias")
    ours = {key: shape for key, shape in shapes.items() if not any(part in key for part in elsewhere)}
    assert ours == {key: shape for key, shape in state.items() if key not in experts}
    moe_elements = sum(int(np.prod(shape)) for key, shape in shapes.items() if key not in ours)
    assert moe_elements == sum(int(np.prod(state[key])) for key in experts) - unused_params(spec)


def used_by(source: Source) -> list[tuple[str, int | None]]:
    """The tensors a source reads, each whole or one expert of it."""
    if isinstance(source, Stacked):
        return [(source.name, source.expert)]
    if isinstance(source, StackedRows):
        return [(name, source.expert) for name in source.names]
    rows = source.rows if isinstance(source, Transposed) else source
    return [(name, None) for name in published_shapes(rows, (source_rows(rows),))]


def source_rows(source: RowSource) -> int:
    """Any number of rows that the source divides."""
    if isinstance(source, Rows):
        return sum(run.count for run in source.runs)
    return source.groups * (source.queries + 2) if isinstance(source, GroupedQkv) else 2


@pytest.mark.parametrize("example", CONFIGS)
def test_every_parameter_of_the_table_has_a_source(example: str):
    """Sources cover the parameter table in its order, and tile each tensor's rows and its published tensors exactly."""
    spec = model_from_hf(CONFIGS[example])
    expected = {
        fqn_of(layer, param, expert=expert): param.shape
        for layer, param in model_params(spec)
        for expert in (range(param.experts) if param.experts else (None,))
    }
    assert list(hf_sources(spec)) == list(expected)
    for fqn, source in hf_sources(spec).items():
        if isinstance(source, Stacked):
            assert published_shapes(source, expected[fqn]) == {source.name: (source.experts, *reversed(expected[fqn]))}
            continue
        if isinstance(source, StackedRows):
            rows, *columns = expected[fqn]
            each = (source.experts, rows // len(source.names), *columns)
            assert published_shapes(source, expected[fqn]) == dict.fromkeys(source.names, each)
            continue
        rows, turned = expected[fqn][0], isinstance(source, Transposed)
        runs = row_runs(source.rows if turned else source, rows)
        assert sum(run.count for run in runs) == rows
        for tensor, shape in published_shapes(source, expected[fqn]).items():
            covered = sorted((run.start, run.start + run.count) for run in runs if run.tensor == tensor)
            edges = [0, *(edge for run in covered for edge in run), shape[-1 if turned else 0]]
            assert edges[::2] == edges[1::2]


@given(groups=st.integers(1, 5), queries=st.integers(1, 4), head=st.integers(1, 6))
def test_grouped_qkv_equals_a_reshape(groups: int, queries: int, head: int):
    """The interleaving is numpy's: heads split by group, joined along a new axis, flattened."""
    q, k, v = (np.arange(groups * n * head).reshape(groups, n * head) + 1000 * i for i, n in enumerate((queries, 1, 1)))
    expected = np.concatenate([q, k, v], axis=1).reshape(-1)
    flat = {"q": q.reshape(-1), "k": k.reshape(-1), "v": v.reshape(-1)}
    runs = row_runs(GroupedQkv("q", "k", "v", groups=groups, queries=queries), expected.size)
    assert np.array_equal(
        np.concatenate([flat[run.tensor][run.start : run.start + run.count] for run in runs]), expected
    )


def test_names_read_as_they_are_published():
    """A few sources, as a person would check them."""
    sources = hf_sources(model_from_hf(CONFIGS["mixtral"]))
    layer = "model.layers.2."
    attention = layer + "self_attn."
    expert = layer + "block_sparse_moe.experts.3."
    assert sources["embedding.word_embeddings.weight"] == Direct("model.embed_tokens.weight")
    assert sources["decoder.layers.2.self_attention.linear_qkv.weight"] == GroupedQkv(
        attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight", groups=2, queries=3
    )
    assert sources["decoder.layers.2.mlp.experts.local_experts.3.linear_fc1.weight"] == GateUp(
        expert + "w1.weight", expert + "w3.weight"
    )
    assert sources["decoder.layers.2.mlp.router.weight"] == Direct(layer + "block_sparse_moe.gate.weight")


AHEAD = {  # as the published files of both spell them, by which vLLM and SGLang read them
    "qwen3_next": ("mtp.fc", "mtp.pre_fc_norm_hidden", "mtp.norm", "mtp.layers.0.mlp.experts.3.down_proj"),
    "longcat_flash": ("eh_proj", "hnorm.m", "norm", "transformer_layer.mlp.down_proj"),
}


@pytest.mark.parametrize("family", AHEAD)
def test_multi_token_prediction_under_names_of_its_own(family: str):
    """Every tensor of it is beyond those of the model without, where it says nothing but is known."""
    without = model_from_hf(EXAMPLES[family])
    ahead = model_from_hf({**EXAMPLES[family], "num_nextn_predict_layers": 1})
    assert ahead == attrs.evolve(without, mtp=1)
    assert model_from_hf(hf_config_of(ahead)) == ahead
    beyond = hf_shapes(ahead).keys() - hf_shapes(without).keys()
    assert all(name.startswith("model.mtp." if family == "longcat_flash" else "mtp.") for name in beyond)
    part = "mlp.experts.local_experts.3.linear_fc2" if family == "qwen3_next" else "mlp.linear_fc2"
    ours = ("eh_proj", "hnorm", "final_layernorm", f"transformer_layer.{part}")
    sources = [hf_sources(ahead)[f"mtp.layers.0.{name}.weight"] for name in ours]
    prefix = {"eh_proj": "model.mtp.layers.0.", "norm": "model.mtp."}
    published = [prefix.get(name, "model.mtp.layers.0.") + name for name in AHEAD[family]]
    expected = published if family == "longcat_flash" else AHEAD[family]
    assert sources == [Direct(f"{name}.weight") for name in expected]
    assert beyond <= hf_derived(without)
    assert not beyond & hf_derived(ahead)
    with pytest.raises(SpecError, match="num_nextn_predict_layers=2: must be 0 or 1"):
        model_from_hf({**EXAMPLES[family], "num_nextn_predict_layers": 2})


def test_a_tied_head_is_derived():
    """A file of a tied model may hold the head again; it is no parameter of its own."""
    tied, untied = model_from_hf(CONFIGS["qwen2, tied"]), model_from_hf(CONFIGS["qwen2"])
    assert "lm_head.weight" in hf_derived(tied)
    assert "lm_head.weight" not in hf_shapes(tied)
    assert "lm_head.weight" in hf_shapes(untied)
    assert "lm_head.weight" not in hf_derived(untied)


def test_a_model_no_family_can_express_has_no_names():
    """Names exist only for models whose config can be written."""
    spec = model_from_hf(CONFIGS["llama"])
    with pytest.raises(SpecError, match=r"mtp=2: cannot be written as family='llama'"):
        hf_sources(attrs.evolve(spec, mtp=2))
