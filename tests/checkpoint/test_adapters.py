"""Adapters in PEFT's format, and NF4: against matrix products and bitsandbytes' own values."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.checkpoint.boxes import whole
from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.io.adapters import Adapter, merged, read_adapter, write_adapter
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.checkpoint.io.nf4 import dequantise, dynamic_map, quantise
from ridgeline.checkpoint.io.open_source import hf_model, open_source
from ridgeline.checkpoint.io.sources import weights_in
from ridgeline.checkpoint.names import params_of
from ridgeline.core.errors import CheckpointError
from ridgeline.core.layout import Layout
from tests.checkpoint.hf_models import random_model


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    random_model("Mixtral").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def adapters_of(hf: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """An adapter of rank 3 on some of our layers, fused ones and an expert's among them."""
    generator = torch.Generator().manual_seed(1)
    chosen = ("1.self_attention.linear_qkv", "2.self_attention.linear_proj", "0.mlp.experts.local_experts.3.linear_fc1")
    shapes = {
        fqn: param.shape for fqn, param in params_of(hf_model(hf)).items() if any(f".{c}." in fqn for c in chosen)
    }
    assert len(shapes) == 3
    return {
        fqn: (torch.randn(3, columns, generator=generator), torch.randn(rows, 3, generator=generator))
        for fqn, (rows, columns) in shapes.items()
    }


def test_there_and_back_and_merged(hf: Path, tmp_path: Path) -> None:
    """Written for the published layers and merged into any layout, each of our weights is W + alpha/r B A."""
    fused = adapters_of(hf)
    write_adapter(tmp_path / "adapter", hf_model(hf), fused, alpha=6.0)
    wanted = Wanted(
        format="classic",
        layout=Layout(tp=2, ep=5, pp=3),
        form=ClassicForm(experts="grouped"),
        adapter=str(tmp_path / "adapter"),
    )
    convert(plan_conversion(hf, wanted), tmp_path / "out")
    model = hf_model(hf)
    before, after = weights_in(open_source(hf)), weights_in(open_source(tmp_path / "out", model=model))
    for fqn, param in params_of(model).items():
        one, other = torch.empty(param.shape), torch.empty(param.shape)
        before(fqn, whole(param.shape), one)
        after(fqn, whole(param.shape), other)
        if fqn in fused:
            a, b = fused[fqn]
            # Sums of three products, in another order than torch's for the whole matrix.
            assert torch.allclose(other, one + 2.0 * (b @ a), atol=1e-5)
            assert not torch.equal(one, other)
        else:
            assert torch.equal(one, other)


def test_names_are_those_of_peft(hf: Path, tmp_path: Path) -> None:
    """The names, shapes and fields that peft 0.21 writes and reads."""
    write_adapter(tmp_path / "adapter", hf_model(hf), adapters_of(hf), alpha=6.0, base="some/model")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj", "w1", "w3"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"].shape == (3, 48)
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"].shape == (16, 3)


def test_what_cannot_be_merged(hf: Path, tmp_path: Path) -> None:
    """Other kinds of adapters, halves of one, and ones for another model are refused."""
    folder = tmp_path / "adapter"
    write_adapter(folder, hf_model(hf), adapters_of(hf), alpha=6.0)
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora=True: cannot be merged"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = next(name for name in tensors if ".lora_A." in name)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="needs an A and a B of rank 3"):
        read_adapter(folder)
    save_file(
        {key.replace("layers.2", "layers.7"): value for key, value in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(
        CheckpointError, match=r"adapter: model.layers.7.self_attn.o_proj: \S+ holds no matrix of 48 by 48"
    ):
        plan_conversion(hf, Wanted(format="hf", adapter=str(folder)))


def test_transposed_matrices_have_no_adapter(tmp_path: Path) -> None:
    """PEFT would say which way an adapter of GPT-2's matrices lies, square ones too: neither written nor merged."""
    random_model("GPT2").save_pretrained(tmp_path / "hf")
    model, pair = hf_model(tmp_path / "hf"), (torch.ones(3, 48), torch.ones(48, 3))
    with pytest.raises(CheckpointError, match=r"linear_proj\.weight: is published transposed"):
        write_adapter(
            tmp_path / "adapter", model, {"decoder.layers.1.self_attention.linear_proj.weight": pair}, alpha=1.0
        )
    adapter = Adapter(1.0, {"transformer.h.1.attn.c_proj": pair})
    with pytest.raises(CheckpointError, match=r"transformer\.h\.1\.attn\.c_proj: is published transposed"):
        merged(open_source(tmp_path / "hf"), adapter)


def digest(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize(
    ("shape", "dtype", "packed", "scales", "values"),
    [
        ((320, 256), torch.float32, 3200911574, 406639215, 4160657093),
        ((320, 256), torch.bfloat16, 2360492281, 1361168434, 3067845869),
        ((37, 50), torch.float32, 1072848183, 1451225843, 967518599),
        ((37, 50), torch.bfloat16, 2607141167, 1792967262, 2611870591),
    ],
)
def test_nf4_is_that_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, packed: int, scales: int, values: int
) -> None:
    """Nibbles, scales of scales and values have the CRC-32 of what bitsandbytes 0.50.2 gives for the same tensor."""
    elements = np.arange(shape[0] * shape[1], dtype=np.int64) * 7919 % 10007 / 10007 - 0.5
    tensor = (torch.from_numpy(elements.astype(np.float32)).view(shape) ** 3).to(dtype)
    quantised = quantise(tensor)
    assert digest(quantised.packed) == packed
    assert digest(quantised.scales) == scales
    assert digest(dequantise(quantised, dtype)) == values


def test_nf4_takes_half_a_byte() -> None:
    """4.127 bits a weight, as QLoRA's section 3 has it; and every number of the code comes back as it was."""
    tensor = torch.randn(256, 1024)
    assert 8 * quantise(tensor).bytes / tensor.numel() == pytest.approx(4.127, abs=2e-3)
    assert dynamic_map().shape == (256,)
    assert (dequantise(quantise(tensor), torch.float32) - tensor).abs().max() < 0.16 * tensor.abs().max()
