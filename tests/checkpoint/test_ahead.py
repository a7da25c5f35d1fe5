"""Multi-token prediction in files that name it apart, and whose configs do not say that they hold it."""

import json
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.checkpoint.io.convert import Wanted
from ridgeline.checkpoint.io.hf import open_hf
from ridgeline.models.hf_config import model_from_hf
from ridgeline.models.hf_names import hf_shapes
from tests.checkpoint.conversions import made, model_of
from tests.models.examples import EXAMPLES


@pytest.mark.parametrize("family", ["qwen3_next", "longcat_flash"])
def test_it_goes_around_the_formats(tmp_path: Path, family: str) -> None:
    """Found where the config is silent, kept by a conversion there and back, and dropped where a model wants none."""
    source = tmp_path / "source"
    source.mkdir()
    without = model_from_hf(EXAMPLES[family])
    shapes = hf_shapes(attrs.evolve(without, mtp=1))
    generator = torch.Generator().manual_seed(7)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    (source / "config.json").write_text(json.dumps(EXAMPLES[family]))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert model_of(source).mtp == 1
    dist = made(source, tmp_path / "dist", Wanted(format="torch_dist"))
    back = made(dist, tmp_path / "back", Wanted(format="hf"))
    again = {name: tensor for file in back.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name].to(again[name].dtype)) for name in tensors)
    assert model_of(back) == attrs.evolve(model_of(source), name=back.name)
    assert set(open_hf(source, without).dropped) == tensors.keys() - hf_shapes(without).keys()
