"""Every family's published files come back from a checkpoint split over ranks, tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.core.layout import Layout
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from ridgeline.models.hf_names import hf_shapes
from tests.models.examples import EXAMPLES, REMOTE

SPLIT = Wanted(format="classic", layout=Layout(tp=2))
CONVERTED = (*sorted(REMOTE), "glm", "minicpm3", "phi3")
"""Names and transforms of their own; of the others, transformers' models go around all formats."""


@pytest.mark.parametrize("name", CONVERTED)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """hf to a file for each of two tp ranks to hf: the same names, and the same bytes under each."""
    source, split, back = (tmp_path / folder for folder in ("source", "split", "back"))
    source.mkdir()
    model = model_from_hf(EXAMPLES[name])
    tensors = {tensor: torch.randn(shape) for tensor, shape in hf_shapes(model).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text(json.dumps(EXAMPLES[name]))
    convert(plan_conversion(source, SPLIT), split)
    convert(plan_conversion(split, Wanted(format="hf")), back)
    again = {tensor: value for file in back.glob("*.safetensors") for tensor, value in load_file(file).items()}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[tensor], value) for tensor, value in tensors.items())
    assert model_from_hf(read_hf_config(back)) == model
