"""Every tensor of every file is the one that MindSpeed-LLM's converter writes for the same model and launch options."""

import argparse
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from ridgeline.checkpoint.classic import ClassicForm, name_in_file
from ridgeline.checkpoint.io.execute import chunks_of
from ridgeline.checkpoint.io.open_source import open_source
from ridgeline.checkpoint.io.safetensors import Entry
from ridgeline.checkpoint.pieces import Holder
from ridgeline.checkpoint.published import published_buffers
from ridgeline.checkpoint.reshard import reshard
from ridgeline.core.errors import CheckpointError
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec, Repeat
from ridgeline.models.hf_config import model_from_hf
from tests.checkpoint.mindspeed import Options, as_keywords, written
from tests.checkpoint.test_classic import DENSE, LATENT, MOE, converted, numbers


def of_layers(model: ModelSpec, count: int) -> ModelSpec:
    """The same model with so many layers."""
    (run,) = model.blocks
    return attrs.evolve(model, blocks=(Repeat(block=run.block, count=count),))


TIED = attrs.evolve(of_layers(DENSE, 8), tied_embeddings=True)
PLAIN = Options(layers=4, heads=8, kv_heads=4)
EIGHT = Options(layers=8, heads=8, kv_heads=4, tie=True)
SPARSE = Options(layers=3, heads=8, kv_heads=4, experts=8)
MLA = Options(layers=3, heads=4, experts=8, first_k_dense_replace=1, mtp_num_layers=1)
SHARED = {
    "model_type": "qwen2_moe",
    "vocab_size": 38,
    "hidden_size": 24,
    "intermediate_size": 28,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
}

CASES: dict[str, tuple[ModelSpec, Options]] = {
    "one rank": (DENSE, PLAIN),
    "tp4 pp2": (DENSE, attrs.evolve(PLAIN, tp=4, pp=2, vocab_rows=40)),
    "uneven stages": (DENSE, attrs.evolve(PLAIN, tp=2, pp=3, num_layer_list=(1, 2, 1))),
    "interleaved, tied": (TIED, attrs.evolve(EIGHT, pp=1, tp=2)),
    "interleaved": (of_layers(DENSE, 8), attrs.evolve(EIGHT, tie=False, tp=2, pp=2, layers_per_vpp_stage=2)),
    "noops interleaved": (
        of_layers(DENSE, 6),
        attrs.evolve(EIGHT, layers=6, tie=False, pp=2, layers_per_vpp_stage=2, noop_layers=(4, 7)),
    ),
    "noops": (of_layers(DENSE, 6), attrs.evolve(EIGHT, layers=6, tie=False, pp=4, noop_layers=(0, 7))),
    "folded": (of_layers(DENSE, 8), attrs.evolve(EIGHT, tie=False, tp=2, pp=2, dualpipev=True)),
    "folded with noops": (
        of_layers(DENSE, 6),
        attrs.evolve(EIGHT, layers=6, tie=False, pp=2, dualpipev=True, noop_layers=(1, 7)),
    ),
    "te": (DENSE, attrs.evolve(PLAIN, tp=2, transformer_engine=True)),
    "experts over ep": (MOE, attrs.evolve(SPARSE, ep=4)),
    "experts over ep and tp": (MOE, attrs.evolve(SPARSE, ep=2, tp=4, vocab_rows=40)),
    "more ep than tp": (MOE, attrs.evolve(SPARSE, ep=4, tp=2, moe_grouped_gemm=True)),
    "etp": (MOE, attrs.evolve(SPARSE, ep=2, tp=2, etp=2, pp=3)),
    "etp grouped": (MOE, attrs.evolve(SPARSE, ep=2, tp=2, etp=2, moe_grouped_gemm=True)),
    "tp extends ep": (MOE, attrs.evolve(SPARSE, ep=2, tp=2, moe_grouped_gemm=True, moe_tp_extend_ep=True)),
    "te grouped": (MOE, attrs.evolve(SPARSE, ep=2, tp=2, moe_grouped_gemm=True, transformer_engine=True)),
    "mla": (model_from_hf(LATENT), attrs.evolve(MLA, tp=2, ep=2)),
    "mla grouped, uneven": (
        model_from_hf(LATENT),
        attrs.evolve(MLA, tp=2, ep=4, pp=2, num_layer_list=(2, 1), moe_grouped_gemm=True),
    ),
    "mla folded": (
        model_from_hf(LATENT | {"num_hidden_layers": 4}),
        attrs.evolve(MLA, layers=4, tp=2, ep=2, pp=2, dualpipev=True, moe_grouped_gemm=True),
    ),
    "mla etp": (model_from_hf(LATENT), attrs.evolve(MLA, tp=2, etp=2, ep=2)),
    "no low rank of queries": (
        model_from_hf(LATENT | {"q_lora_rank": None, "num_nextn_predict_layers": 0}),
        attrs.evolve(MLA, mtp_num_layers=0, tp=2, ep=2),
    ),
    "a gate before shared experts": (
        model_from_hf(SHARED),
        Options(layers=3, heads=4, kv_heads=2, experts=8, tp=2, ep=2, etp=2, moe_grouped_gemm=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_are_those_of_mindspeed(case: str) -> None:
    """The same folders, chunks, names, shapes and elements; nothing more, and nothing less."""
    model, options = CASES[case]
    form = ClassicForm(
        experts="grouped" if options.moe_grouped_gemm else "sequential",
        impl="te" if options.transformer_engine else "local",
        tp_extend_ep=options.moe_tp_extend_ep,
    )
    layout = Layout(**as_keywords(options), vocab_multiple=10 if options.vocab_rows else 1)
    ours: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for folder, tensors in converted(model, layout, form).items():
        for name, array in tensors.items():
            chunk, _, rest = name.partition("/")
            ours.setdefault(folder, {}).setdefault(chunk, {})[name_in_file(rest, form, mtp=model.mtp > 0)] = array
    theirs = written(numbers(model), options)
    assert ours.keys() == theirs.keys()
    for folder, chunks in theirs.items():
        for chunk, tensors in chunks.items():
            found = ours[folder].get(chunk, {})
            assert found.keys() == tensors.keys(), (folder, chunk)
            for name, array in tensors.items():
                assert np.array_equal(found[name], array), (folder, chunk, name)


def saved(files: dict[str, dict[str, dict[str, np.ndarray]]], folder: Path, options: Options) -> None:
    """Files as MindSpeed-LLM's converter saves them."""
    for name, chunks in files.items():
        rank = folder / "iter_0000001" / name
        rank.mkdir(parents=True)
        state = {
            chunk: {key: torch.from_numpy(np.ascontiguousarray(array)).float() for key, array in tensors.items()}
            for chunk, tensors in chunks.items()
        }
        args = argparse.Namespace(moe_tp_extend_ep=options.moe_tp_extend_ep)
        content = {"args": args, "checkpoint_version": 3.0, "iteration": 1, **state}
        torch.save(content, rank / "model_optim_rng.pt", pickle_protocol=4)
    (folder / "latest_checkpointed_iteration.txt").write_text("1")


READ = (
    "uneven stages",
    "noops interleaved",
    "folded with noops",
    "tp extends ep",
    "te grouped",
    "mla folded",
    "mla etp",
)


@pytest.mark.parametrize("case", [*READ, *(pytest.param(c, marks=pytest.mark.full) for c in CASES if c not in READ)])
def test_files_of_mindspeed_are_read(case: str, tmp_path: Path) -> None:
    """Their layout is found out, and the published tensors come back as they were."""
    model, options = CASES[case]
    published = numbers(model)
    saved(written(published, options), tmp_path, options)
    opened = open_source(tmp_path, model=model)
    fills = reshard(opened.holders, (Holder("hf", published_buffers(model)),)).fills
    assert {fill.buffer.name for fill in fills} == published.keys()
    for fill in fills:
        entry = Entry(fill.buffer.name, torch.float32, fill.buffer.shape)
        data = b"".join(map(bytes, chunks_of(fill, entry, opened.tensors)))
        assert np.array_equal(np.frombuffer(data, np.float32).reshape(entry.shape), published[entry.name]), entry.name


def test_a_head_of_its_own_is_missed(tmp_path: Path) -> None:
    """A tied head may be left out; one that is not tied may not."""
    files = written(numbers(DENSE), PLAIN)
    del files["mp_rank_00"]["model"]["output_layer.weight"]
    saved(files, tmp_path, PLAIN)
    with pytest.raises(CheckpointError, match=r"model/output_layer\.weight: missing"):
        open_source(tmp_path, model=DENSE)
