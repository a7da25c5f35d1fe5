"""Conversions between all formats: tensors, files, resumption, and what is refused."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.checkpoint.boxes import Box, whole
from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.io import convert as module
from ridgeline.checkpoint.io.convert import Wanted, convert, export_hf, plan_conversion, verify
from ridgeline.checkpoint.io.execute import chunks_of
from ridgeline.checkpoint.io.open_source import hf_model, open_source
from ridgeline.checkpoint.io.sources import weights_in
from ridgeline.checkpoint.io.torch_dist import TensorItem, write_frame, write_index, write_items
from ridgeline.checkpoint.names import params_of
from ridgeline.core.errors import CheckpointError, RidgelineError
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from tests.checkpoint.hf_models import ALL_CONFIGS, logits_of, random_model

CLASSIC = {
    "Llama": Wanted(format="classic", layout=Layout(tp=2, pp=3, vocab_multiple=8)),
    "Qwen2": Wanted(
        format="classic",
        layout=Layout(pp=2, schedule="dualpipe_v", noop_layers=(1,)),
        form=ClassicForm(impl="te"),
    ),
    "Qwen3": Wanted(format="classic", layout=Layout(pp=2, vpp=2, noop_layers=(3,))),
    "GptOss": Wanted(format="classic", layout=Layout(tp=2, etp=2, ep=5)),
    "Mixtral": Wanted(format="classic", layout=Layout(tp=2, ep=5), form=ClassicForm(experts="grouped")),
    "DeepseekV3": Wanted(
        format="classic", layout=Layout(tp=2, ep=5, pp=2, noop_layers=(3,)), form=ClassicForm(experts="grouped")
    ),
    "Mamba2": Wanted(format="classic", layout=Layout(tp=2, pp=3)),
    "NemotronH": Wanted(format="classic", layout=Layout(ep=5, pp=3)),
    "Qwen3Moe": Wanted(
        format="classic", layout=Layout(tp=2, etp=2, ep=5), form=ClassicForm(impl="te", experts="grouped")
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each family."""
    root = tmp_path_factory.mktemp("hf")
    for family in ALL_CONFIGS:
        random_model(family).save_pretrained(root / family, max_shard_size="100KB")
    return {family: root / family for family in ALL_CONFIGS}


def model_of(folder: Path) -> ModelSpec:
    return hf_model(folder)


def made(source: Path, out: Path, wanted: Wanted, **options: object) -> Path:
    convert(plan_conversion(source, wanted, **options), out)
    return out


def same_weights(one: Path, other: Path, model: ModelSpec) -> bool:
    """Whether two folders hold the same, read parameter by parameter."""
    readers = [weights_in(open_source(folder, model=model)) for folder in (one, other)]
    for fqn, param in params_of(model).items():
        tensors = [torch.full(param.shape, float(-i - 1)) for i in range(2)]
        for read, tensor in zip(readers, tensors, strict=True):
            read(fqn, whole(param.shape), tensor)
        if not torch.equal(*tensors):
            return False
    return True


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
        torch.save({"args": args, "iteration": 1, "model": state}, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match="does not say whose weights it holds; name the model: --model"):
        open_source(out)
    assert same_weights(folders["Qwen3Moe"], out, model)
    assert any("inv_freq" in name for name in open_source(out, model=model).dropped)
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


def test_a_finished_conversion_is_known(folders: dict[str, Path], tmp_path: Path) -> None:
    """Started again it does nothing; another one into the same folder is refused, and so is any other folder."""
    wanted = CLASSIC["Llama"]
    out = made(folders["Llama"], tmp_path / "out", wanted)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert convert(plan_conversion(folders["Llama"], wanted), out).was_done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(CheckpointError, match="out: exists; remove it or name another"):
        convert(plan_conversion(folders["Llama"], Wanted(format="hf")), out)


def test_damage_after_the_fact_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    """One flipped bit, and the tensor is named; a file cut short, and the file is."""
    for name, wanted in (
        ("hf", Wanted(format="hf")),
        ("dist", Wanted(format="torch_dist")),
        ("classic", CLASSIC["Llama"]),
    ):
        out = made(folders["Llama"], tmp_path / name, wanted)
        path = max((path for path in out.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        good = path.read_bytes()
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        with pytest.raises(CheckpointError, match=rf"is damaged:\n  .*{path.name}: \S+"):
            verify(out)
        path.write_bytes(good[:-1])
        with pytest.raises(CheckpointError, match=f"holds {len(good) - 1} bytes, expected {len(good)}"):
            verify(out)
    with pytest.raises(CheckpointError, match="holds no checksums"):
        verify(folders["Llama"])


def killed_after(calls: int, source: Path, wanted: Wanted, out: Path) -> int:
    """Convert in a process that kills itself after so many chunks; its exit code."""
    child = os.fork()
    if child == 0:
        left = iter(range(calls, -1, -1))

        def progress(done: int, total: int) -> None:
            if next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        convert(plan_conversion(source, wanted), out, progress=progress)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_it_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    """Killed after any number of chunks nothing has the final name; at the end all is as it should be."""
    source, out, wanted = folders["Llama"], tmp_path / "out", Wanted(format="classic", layout=Layout(tp=2, pp=3))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    kills = 0
    for calls in range(1, 100, 4):
        if killed_after(calls, source, wanted, out) == 0:
            break
        kills += 1
        assert not out.exists()
    assert kills >= 4
    assert verify(out)
    assert same_weights(source, out, model_of(source))
    assert not list(tmp_path.glob(".tmp-*"))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_full_disk(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at once where it can be known; and nothing is left where it comes underway."""
    import resource

    planned = plan_conversion(folders["Llama"], Wanted(format="hf"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"no room to write it: 0\.\d MB are needed, 0\.0 MB are free"):
        convert(planned, tmp_path / "out")
    monkeypatch.undo()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="out: no room to write it"):
            convert(planned, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def edited(folder: Path, out: Path, change: str) -> Path:
    """A copy of a folder in one file, its header changed."""
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    save_file(tensors, out / "model.safetensors")
    data = (out / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    match change:
        case "dtype":
            header[first]["dtype"] = "F16"
        case "shape":
            header[first]["shape"][0] *= 2
        case "beyond":
            header[first]["data_offsets"][1] += len(body)
        case "overlap":
            header[second]["data_offsets"], header[second]["shape"] = (
                header[first]["data_offsets"],
                header[first]["shape"],
            )
        case "negative":
            header[first]["shape"] = [-1, *header[first]["shape"][1:]]
        case "unknown":
            header[first]["dtype"] = "F3"
        case "tail":
            body += b"0" * 8
        case "cut":
            body = body[:-8]
    text = json.dumps(header).encode()
    size = 10**15 if change == "length" else len(text)
    (out / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + body)
    return out


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("dtype", r"\S+ has \d+ bytes, its shape and dtype need \d+"),
        ("shape", r"\S+ has \d+ bytes, its shape and dtype need \d+"),
        ("beyond", r"\S+ would end at byte \d+ of \d+"),
        ("overlap", r"\S+ begins at byte \d+, the one before ends at \d+"),
        ("negative", r"\S+ is of shape \[-1"),
        ("unknown", r"\S+ is of dtype F3; known: BF16"),
        ("tail", r"its tensors end at byte \d+ of \d+"),
        ("cut", r"\S+ would end at byte \d+ of \d+"),
        ("length", r"its header would be 10{15} bytes of \d+"),
    ],
)
def test_headers_that_lie(folders: dict[str, Path], tmp_path: Path, change: str, rule: str) -> None:
    """Each lie is told with the file and the tensor, and nothing is written."""
    source = edited(folders["Llama"], tmp_path / "source", change)
    with pytest.raises(CheckpointError, match=f"model.safetensors: is damaged or cut short: {rule}"):
        export_hf(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_links(folders: dict[str, Path], tmp_path: Path) -> None:
    """A link out of the folder is refused; into the blobs of a Hugging Face cache it is followed."""
    cache = tmp_path / "hub"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    source = edited(folders["Llama"], cache / "snapshots" / "1", "none")
    file = source / "model.safetensors"
    shutil.move(file, cache / "blobs" / "abc")
    file.symlink_to("../../blobs/abc")
    made(source, tmp_path / "out", Wanted(format="hf"))
    file.unlink()
    shutil.move(cache / "blobs" / "abc", tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model.safetensors: is a link to \S+elsewhere, out of \S+: refused"):
        plan_conversion(source, Wanted(format="hf"))


class Evil:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo evil",)


def test_pickles_are_not_run(folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A classic file that asks for code is refused, and says for what; one that is no zip is told apart."""
    out = made(folders["Llama"], tmp_path / "out", Wanted(format="classic"))
    path = out / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
    torch.save({"model": {"a": Evil()}}, path)
    with pytest.raises(
        CheckpointError, match=r"asks for posix.system, which is neither a tensor nor plain data: refused"
    ):
        open_source(out)
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match="is damaged, cut short, or of the format before torch"):
        open_source(out)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged or cut short: it is empty"):
        open_source(out)
    assert "evil\n" not in capfd.readouterr().out


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
