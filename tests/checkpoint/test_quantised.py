"""Published weights of 8 and 4 bits, against transformers and numpy, whole and in any part."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.checkpoint.io.mapped import FileTensor, tensor_of
from ridgeline.checkpoint.io.quantised import dequantised
from ridgeline.checkpoint.pieces import row_major
from ridgeline.core.errors import CheckpointError
from ridgeline.core.layout import Layout
from ridgeline.models.hf_config import without_quantisation
from tests.checkpoint.hf_models import random_model


def read(tensor: FileTensor) -> torch.Tensor:
    return tensor.strided(0, tensor.shape, row_major(tensor.shape))


def only(tensors: dict[str, torch.Tensor]) -> FileTensor:
    """The one tensor that some stand for."""
    (tensor,) = dequantised({name: tensor_of(value) for name, value in tensors.items()}).values()
    return tensor


def fp8(rows: int, columns: int) -> dict[str, torch.Tensor]:
    grid = -(-rows // 128), -(-columns // 128)
    return {"w": torch.randn(rows, columns).to(torch.float8_e4m3fn), "w_scale_inv": torch.rand(grid) + 0.1}


def int4(rows: int, columns: int, group: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Packed words, and the integers in them."""
    integers = np.random.default_rng(1).integers(0, 16, (rows, columns))
    words = np.zeros((rows, columns // 8), np.uint32)
    for place in range(8):
        words |= (integers[:, place::8] << (4 * place)).astype(np.uint32)
    parts = {
        "w_packed": torch.from_numpy(words.view(np.int32)),
        "w_scale": torch.rand(rows, columns // group).bfloat16(),
        "w_shape": torch.tensor([rows, columns]),
    }
    return parts, integers - 8


def mxfp4(experts: int, outputs: int, blocks: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    data = torch.randint(0, 256, (experts, outputs, blocks, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (experts, outputs, blocks), dtype=torch.uint8, generator=generator)
    return {"w_blocks": data, "w_scales": scales}


def test_fp8_as_transformers_has_it() -> None:
    """Blocks of 128 by 128, each with its scale."""
    parts = fp8(256, 384)
    theirs = Fp8Dequantize(None)._dequantize_one(parts["w"], parts["w_scale_inv"], torch.bfloat16)
    assert torch.equal(read(only(parts)), theirs)


def test_fp8_with_ragged_blocks() -> None:
    """The last blocks may be smaller, as DeepSeek-V3's 576 rows have it."""
    parts = fp8(130, 200)
    scales = np.repeat(np.repeat(parts["w_scale_inv"].numpy(), 128, 0), 128, 1)[:130, :200]
    expected = torch.from_numpy(parts["w"].float().numpy() * scales).bfloat16()
    assert torch.equal(read(only(parts)), expected)


def test_int4() -> None:
    """Eight integers a word, the first in the lowest bits, from -8 to 7, times their group's scale."""
    parts, integers = int4(6, 64, 32)
    scales = np.repeat(parts["w_scale"].float().numpy(), 32, 1)
    assert torch.equal(read(only(parts)), torch.from_numpy(integers * scales).float().bfloat16())


def test_mxfp4_as_transformers_has_it() -> None:
    """Nibbles, shared exponents, and experts' matrices transposed."""
    parts = mxfp4(3, 10, 2)
    theirs = convert_moe_packed_tensors(parts["w_blocks"].clone(), parts["w_scales"].clone())
    assert torch.equal(read(only(parts)), theirs)


@pytest.mark.parametrize("parts", [fp8(130, 200), int4(20, 64, 32)[0], mxfp4(3, 10, 2)], ids=["fp8", "int4", "mxfp4"])
def test_any_part(parts: dict[str, torch.Tensor]) -> None:
    """A part, as it lies or transposed, is that part of the whole."""
    tensor = only(parts)
    all_ = read(tensor).reshape(-1, tensor.shape[-1])
    width = tensor.shape[-1]
    for row, column, rows, columns in ((0, 0, 1, 1), (1, 2, 5, 7), (3, 0, 9, width), (8, width - 1, 4, 1)):
        expected = all_[row : row + rows, column : column + columns]
        part = tensor.strided(row * width + column, (rows, columns), (width, 1))
        turned = tensor.strided(row * width + column, (columns, rows), (1, width))
        assert torch.equal(part, expected)
        assert torch.equal(turned, expected.T)


def test_a_folder_of_fp8(tmp_path: Path) -> None:
    """A published folder with its config of quantisation goes into a classic checkpoint, and comes back as bf16."""
    random_model("Qwen3", hidden_size=192, intermediate_size=260).save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    tensors, expected = load_file(tmp_path / "hf" / "model.safetensors"), {}
    for name in list(tensors):
        if name.endswith("_proj.weight"):
            shape = tuple(tensors[name].shape)
            parts = fp8(*shape)
            expected[name] = read(only(parts))
            tensors |= {name: parts["w"], f"{name}_scale_inv": parts["w_scale_inv"]}
        else:
            tensors[name] = expected[name] = tensors[name].bfloat16()
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    wanted = Wanted(format="classic", layout=Layout(tp=2, pp=3), form=ClassicForm(impl="te"))
    convert(plan_conversion(tmp_path / "hf", wanted), tmp_path / "classic")
    convert(plan_conversion(tmp_path / "classic", Wanted(format="hf")), tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.items())


def test_parts_that_do_not_fit() -> None:
    """A grid of scales of another size is told; a method that is not known stays in the config, to be refused there."""
    parts = fp8(130, 200)
    with pytest.raises(CheckpointError, match=r"tensor=w_scale_inv: has shape \(1, 2\), expected \(2, 2\)"):
        only(parts | {"w_scale_inv": torch.ones(1, 2)})
    config = {"quantization_config": {"quant_method": "awq"}, "vocab_size": 3}
    assert without_quantisation(config) == config
    assert without_quantisation({"quantization_config": {"quant_method": "fp8"}, "vocab_size": 3}) == {"vocab_size": 3}
