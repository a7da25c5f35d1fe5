"""Hugging Face folders: read by slices, written whole, judged by transformers and safetensors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.checkpoint.boxes import Box
from ridgeline.checkpoint.io.convert import export_hf, import_hf
from ridgeline.checkpoint.io.dist_source import checkpoint_weights
from ridgeline.checkpoint.io.hf import hf_tensors, hf_weights
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.safetensors import Entry, write_safetensors
from ridgeline.checkpoint.names import params_of
from ridgeline.checkpoint.pieces import row_major
from ridgeline.core.errors import CheckpointError
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.checkpoint.hf_models import CONFIGS, logits, logits_of, random_model


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each family, as transformers saves it, in several files."""
    folder = tmp_path_factory.mktemp("hf") / request.param
    random_model(request.param).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """One model in one file."""
    random_model("Llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def model_of(folder: Path):
    return model_from_hf(read_hf_config(folder))


def read(tensor: FileTensor) -> torch.Tensor:
    return tensor.strided(0, tensor.shape, row_major(tensor.shape))


def test_there_and_back(saved: Path, tmp_path: Path) -> None:
    """Imported and exported again, every tensor is what it was, and transformers gives the same logits."""
    import_hf(saved, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", dtype="fp32", max_file_bytes=100_000)
    ours, theirs = hf_tensors(tmp_path / "out"), hf_tensors(saved)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(read(ours[name]), read(tensor)), name
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(saved))


def test_a_checkpoint_and_its_folder_read_alike(saved: Path, tmp_path: Path) -> None:
    """Any box of any parameter reads the same from the published files and from a checkpoint made of them."""
    import_hf(saved, tmp_path / "checkpoint")
    model = model_of(saved)
    published, stored = hf_weights(saved, model), checkpoint_weights(tmp_path / "checkpoint", model)
    generator = torch.Generator().manual_seed(1)
    for fqn, param in params_of(model).items():
        offset = tuple(int(torch.randint(0, n, (1,), generator=generator)) for n in param.shape)
        box = Box(offset, tuple(n - o for n, o in zip(param.shape, offset, strict=True)))
        one, other = torch.full(box.shape, -1.0), torch.full(box.shape, -2.0)
        published(fqn, box, one)
        stored(fqn, box, other)
        assert torch.equal(one, other), fqn


def test_files_of_a_model_without_its_head(tmp_path: Path) -> None:
    """GPT-2's own files: no name begins with ``transformer.``, and masks lie beside the weights."""
    random_model("GPT2").save_pretrained(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    shutil.copytree(tmp_path / "whole", tmp_path / "bare")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(3)}
    save_file(bare, tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"})
    import_hf(tmp_path / "bare", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", dtype="fp32")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_bin_files(llama: Path, tmp_path: Path) -> None:
    """torch's own files read like safetensors, alone or with an index."""
    tensors = load_file(llama / "model.safetensors")
    names = sorted(tensors)
    alone, many = tmp_path / "alone", tmp_path / "many"
    for folder in (alone, many):
        folder.mkdir()
        shutil.copy(llama / "config.json", folder)
    torch.save(tensors, alone / "pytorch_model.bin")
    torch.save({name: tensors[name] for name in names[:5]}, many / "a.bin")
    torch.save({name: tensors[name] for name in names[5:]}, many / "b.bin")
    where = {name: "a.bin" if name in names[:5] else "b.bin" for name in names}
    (many / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    for folder in (alone, many):
        import_hf(folder, folder / "checkpoint")
        export_hf(folder / "checkpoint", folder / "out", dtype="fp32")
        assert torch.equal(logits_of(folder / "out"), logits_of(llama))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_dtypes(llama: Path, tmp_path: Path, dtype: str) -> None:
    """An export in lower precision is the rounding of each element, and its config says so."""
    import_hf(llama, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out", dtype=dtype)
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    full = load_file(llama / "model.safetensors")
    rounded = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, full[name].to(torch_dtype)) for name, tensor in rounded.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(torch_dtype).split(".")[1]


def test_tokenizers_come_along(llama: Path, tmp_path: Path) -> None:
    """The tokenizer's files are copied, and the config names its tokens."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    added = [{"id": 130, "content": "<end>"}, {"id": 129, "content": "<s>"}]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    settings = {"eos_token": "<end>", "bos_token": {"content": "<s>"}, "pad_token": None}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (tokenizer / "secret.txt").write_text("not a tokenizer's")
    import_hf(llama, tmp_path / "checkpoint")

    for number, path in enumerate((tokenizer, tokenizer / "tokenizer.json")):
        export_hf(tmp_path / "checkpoint", tmp_path / f"out{number}", tokenizer=path)
        config = json.loads((tmp_path / f"out{number}" / "config.json").read_text())
        assert (config["eos_token_id"], config["bos_token_id"]) == (130, 129)
        assert (tmp_path / f"out{number}" / "tokenizer.json").is_file()
        assert not (tmp_path / f"out{number}" / "secret.txt").exists()
    with pytest.raises(CheckpointError, match=f"tokenizer={llama}/x: holds none of tokenizer.json"):
        export_hf(tmp_path / "checkpoint", tmp_path / "out3", tokenizer=llama / "x")


def test_ours_reads_as_safetensors(tmp_path: Path) -> None:
    """The safetensors library reads what we write, whatever the dtypes and shapes."""
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "ü": torch.zeros(0, 4).half()}
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "x.safetensors", entries, tensors.values())
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_all_that_does_not_fit_is_named(llama: Path, tmp_path: Path) -> None:
    """Missing, misshapen and foreign tensors come in one error, and nothing is written."""
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()
    tensors["model.layers.0.extra"] = torch.zeros(1)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(tensors, llama / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        import_hf(llama, tmp_path / "out")
    assert str(caught.value).splitlines()[1:] == [
        "  model.norm.weight: missing, expected (48,)",
        "  lm_head.weight: has shape (100, 48), expected (131, 48)",
        "  model.layers.0.extra: is no tensor of this model",
    ]
    assert not (tmp_path / "out").exists()


class Evil:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("evil",)


def test_damage_is_named(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each way to be broken is told with the file's name."""
    file, index = llama / "model.safetensors", llama / "model.safetensors.index.json"
    good = file.read_bytes()

    def fault(rule: str) -> None:
        with pytest.raises(CheckpointError, match=rule):
            hf_tensors(llama)

    file.write_bytes(good[:-10])
    fault("model.safetensors: is damaged or cut short: .*")
    file.write_bytes(b"\xff" * 100)
    fault("model.safetensors: is damaged or cut short: .*")
    file.write_bytes(b"")
    fault("model.safetensors: is damaged or cut short: .*")
    index.write_text('{"weight_map": {"a": "absent.safetensors"}}')
    fault("index.json: names files that are absent: absent.safetensors")
    index.write_text('{"weight_map": {"a": "../model.safetensors"}}')
    fault("index.json: names '../model.safetensors', which is no file of its folder: refused")
    index.write_text("{}")
    fault("index.json: is no index of weights")
    index.unlink()
    file.unlink()
    fault(f"folder={llama}: holds neither model.safetensors nor pytorch_model.bin")
    torch.save({"a": Evil()}, llama / "pytorch_model.bin")
    fault("pytorch_model.bin: asks for __builtin__.print, which is neither a tensor nor plain data: refused")
    torch.save({"a": [1]}, llama / "pytorch_model.bin")
    fault("pytorch_model.bin: holds 'a', a list, expected tensors by name: refused")
    assert "evil\n" not in capfd.readouterr().out


def test_nothing_is_overwritten(llama: Path, tmp_path: Path) -> None:
    """An export into a folder that exists is refused."""
    import_hf(llama, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"llama: exists; remove it or name another"):
        export_hf(tmp_path / "checkpoint", llama)
    assert torch.equal(logits_of(llama), logits(random_model("Llama")))
