"""Conversions between all formats: tensors, files, dtypes and plans."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ridgeline.checkpoint.boxes import Box, whole
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion, verify
from ridgeline.checkpoint.io.execute import chunks_of
from ridgeline.checkpoint.io.open_source import open_source
from ridgeline.checkpoint.io.sources import weights_in
from ridgeline.checkpoint.io.torch_dist.writer import TensorItem, write_frame, write_index, write_items
from ridgeline.checkpoint.names import params_of
from ridgeline.core.errors import CheckpointError, RidgelineError
from ridgeline.core.layout import Layout
from tests.checkpoint.conversions import CLASSIC, made, model_of, same_weights
from tests.checkpoint.hf_models import ALL_CONFIGS, logits_of

TRAINING_STATE = ("model_optim_rng.pt: optimizer", "distrib_optim.pt")


@pytest.mark.parametrize("family", ALL_CONFIGS)
def test_around_all_formats(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """hf to classic to torch_dist to another classic to hf: all hold the same, and transformers gives equal logits."""
    source = folders[family]
    model = model_of(source)
    classic = made(source, tmp_path / "classic", CLASSIC[family])
    dist = made(classic, tmp_path / "dist", Wanted(format="torch_dist"))
    other = made(dist, tmp_path / "other", Wanted(format="classic", layout=Layout(pp=3)))
    hf = made(other, tmp_path / "hf", Wanted(format="hf", max_file_bytes=100_000))
    assert all(same_weights(source, folder, model) for folder in (classic, dist, other, hf))
    assert torch.equal(logits_of(hf), logits_of(source))
    assert all(verify(folder) > 0 for folder in (classic, dist, other, hf))


def test_what_a_classic_checkpoint_holds(folders: dict[str, Path], tmp_path: Path) -> None:
    """torch itself reads the file: its frame, its names, its tensors; its step is where Megatron-LM looks for it."""
    import argparse

    out = made(folders["Llama"], tmp_path / "out", CLASSIC["Llama"])
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "1"
    path = out / "iter_0000001" / "mp_rank_01_002" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    assert (content["checkpoint_version"], content["iteration"]) == (3.0, 1)
    assert (content["args"].num_layers, content["args"].padded_vocab_size) == (3, 144)
    state = content["model"]
    hf = {name: t for file in folders["Llama"].glob("*.safetensors") for name, t in load_file(file).items()}
    assert torch.equal(state["output_layer.weight"][: 131 - 72], hf["lm_head.weight"][72:])
    assert torch.equal(state["output_layer.weight"][131 - 72 :], hf["lm_head.weight"][130:].expand(13, -1))
    assert torch.equal(
        state["decoder.layers.0.mlp.linear_fc2.weight"], hf["model.layers.2.mlp.down_proj.weight"][:, 28:]
    )
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_a_classic_checkpoint_that_torch_wrote(folders: dict[str, Path], tmp_path: Path) -> None:
    """Files as MindSpeed-LLM's converter saves them, protocol 4 and all: read when the model is named."""
    import argparse
    from collections import defaultdict

    out = made(folders["Qwen3Moe"], tmp_path / "out", CLASSIC["Qwen3Moe"])
    model = model_of(folders["Qwen3Moe"])
    (out / "ridgeline.json").unlink()
    for path in out.rglob("*.pt"):
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, weights_only=True)
        state = defaultdict(dict, {name: tensor.t().contiguous().t() for name, tensor in content["model"].items()})
        state["rotary_pos_emb.inv_freq"] = torch.zeros(3)
        args = argparse.Namespace(num_layers=3, flags=[1, 2.5, "x"], dtype=torch.bfloat16)
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
        content = {"args": args, "iteration": 1, "model": state, "optimizer": optimizer}
        torch.save(content, path, pickle_protocol=4)
        (path.parent / "distrib_optim.pt").touch()
    with pytest.raises(CheckpointError, match="does not say whose weights it holds; name the model: --model"):
        open_source(out)
    assert same_weights(folders["Qwen3Moe"], out, model)
    dropped = open_source(out, model=model).dropped
    assert any("inv_freq" in name for name in dropped)
    assert {f"{rank.name}/{file}" for rank in out.glob("*/*") for file in TRAINING_STATE} <= set(dropped)
    shutil.rmtree(out / "iter_0000001" / "mp_rank_01_004")
    with pytest.raises(CheckpointError, match="does not hold the weights of model"):
        open_source(out, model=model)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_dtypes(folders: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    """Each element is rounded once."""
    rounded = made(folders["Qwen3"], tmp_path / "out", Wanted(format="hf", dtype=dtype))
    theirs = {name: t for file in folders["Qwen3"].glob("*.safetensors") for name, t in load_file(file).items()}
    ours = load_file(rounded / "model.safetensors")
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert all(torch.equal(tensor, theirs[name].to(wanted)) for name, tensor in ours.items())


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("chunk_bytes", [400, 3_000])
def test_chunks_of_any_size(folders: dict[str, Path], family: str, chunk_bytes: int) -> None:
    """However small the chunks, and whether gathered or taken as they lie, the bytes of a tensor are the same."""
    conversion = plan_conversion(folders[family], CLASSIC[family])
    file = conversion.destination.files[0]
    for entry, fill in list(zip(file.entries, file.fills, strict=True))[-4:]:
        tensors = conversion.opened.tensors
        for runs in (0, 1 << 30):  # as the source has them wherever that can be, and never
            small = chunks_of(fill, entry, tensors, chunk_bytes=chunk_bytes, min_run_bytes=runs)
            usual = chunks_of(fill, entry, tensors)
            assert b"".join(map(bytes, small)) == b"".join(map(bytes, usual)), entry.name


def test_every_byte_is_read_once(folders: dict[str, Path]) -> None:
    """A plan to one rank reads each published byte exactly once, or says that it is left out."""
    for family, folder in folders.items():
        conversion = plan_conversion(folder, Wanted(format="classic"))
        tensors = conversion.opened.tensors
        seen = {key: np.zeros(int(np.prod(tensor.shape)), int) for key, tensor in tensors.items()}
        for fill in (fill for file in conversion.destination.files for fill in file.fills):
            for copy in fill.copies:
                view = np.lib.stride_tricks.as_strided(
                    seen[copy.holder, copy.buffer][copy.source_start :],
                    copy.shape,
                    [8 * stride for stride in copy.source_strides],
                )
                view += 1
        assert all((count == 1).all() for count in seen.values()), family


def test_layouts_that_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    """All faults of a layout come at once; a layout is refused where it means nothing."""
    with pytest.raises(
        RidgelineError, match=r"layout.tp=4: must divide heads=6(.|\n)*layout.ep=2: needs a model with experts"
    ):
        plan_conversion(folders["Llama"], Wanted(format="classic", layout=Layout(tp=4, ep=2)))
    with pytest.raises(CheckpointError, match="layout: has no effect on format='torch_dist'"):
        plan_conversion(folders["Llama"], Wanted(format="torch_dist", layout=Layout(tp=2)))


def test_a_plan_says_what_will_be_written(folders: dict[str, Path], tmp_path: Path) -> None:
    """The bytes planned are the bytes written."""
    conversion = plan_conversion(folders["Mixtral"], CLASSIC["Mixtral"])
    convert(conversion, tmp_path / "out")
    for file in conversion.destination.files:
        size = (tmp_path / "out" / file.name).stat().st_size
        assert file.bytes < size < file.bytes + 100_000
    assert conversion.destination.bytes == sum(file.bytes for file in conversion.destination.files)


@pytest.mark.parametrize("te", [False, True])
def test_a_checkpoint_of_megatron_itself(folders: dict[str, Path], tmp_path: Path, te: bool) -> None:
    """Equal layers in one tensor, a padded vocabulary, norms named by Transformer Engine: read as if it were ours."""
    source = folders["Llama"]
    model = model_of(source)
    read = weights_in(open_source(source))
    renamed = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }
    items = []
    for fqn, param in params_of(model).items():
        tensor = torch.empty(param.shape)
        read(fqn, whole(param.shape), tensor)
        parts = fqn.split(".")
        if parts[0] == "decoder" and parts[1] == "layers":
            name = ".".join(parts[3:])
            key = f"decoder.layers.{renamed.get(name, name) if te else name}"
            box = Box((int(parts[2]), *(0,) * len(param.shape)), (1, *param.shape))
            items.append(TensorItem(key, (model.num_layers, *param.shape), box, tensor[None]))
        elif param.role in ("embedding", "head"):
            padded = torch.cat([tensor, torch.zeros(13, tensor.shape[1])])
            items.append(TensorItem(fqn, tuple(padded.shape), whole(tuple(padded.shape)), padded))
        else:
            items.append(TensorItem(fqn, param.shape, whole(param.shape), tensor))
    step = tmp_path / "iter_0000007"
    step.mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    write_index(step, write_items(step / "__0_0.distcp", items))
    write_frame(step, {"iteration": 7})
    assert same_weights(source, tmp_path, model)
    with pytest.raises(CheckpointError, match="does not say whose weights it holds; name the model: --model"):
        open_source(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"decoder.layers.2.mlp.linear_fc1.weight: missing|linear_qkv.weight: has shape"
    ):
        open_source(tmp_path, model=model_of(folders["Qwen3"]))
