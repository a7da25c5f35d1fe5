"""A LoRA adapter merged into the weights of every family, on their way into every layout."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ridgeline.checkpoint.io.adapters import CONFIG, PREFIX, WEIGHTS
from ridgeline.checkpoint.io.convert import Wanted, plan_conversion
from ridgeline.checkpoint.io.execute import chunks_of
from ridgeline.checkpoint.published import published_buffers
from ridgeline.core.errors import PlanError
from ridgeline.core.layout import Layout
from ridgeline.models.hf_config import family_of, model_from_hf
from tests.models.examples import EXAMPLES

LAYOUTS = (Layout(), Layout(tp=2, pp=2), Layout(tp=2, ep=2))
RANK = 3
MERGEABLE = [
    name
    for name, config in EXAMPLES.items()
    if (weights := family_of(config).weights) and not any(one.transposed for one in weights.values())
]
"""Of matrices published transposed an adapter is refused, as `test_adapters` tries."""


def whole_numbers(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Numbers so small that sums of their products are exact in fp32, in any order."""
    return torch.randint(-8, 9, shape, generator=generator).float()


def written(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def files_of(folder: Path, wanted: Wanted) -> Iterator[tuple[str, str, bytes]]:
    """Every tensor of every file that a conversion would write."""
    conversion = plan_conversion(folder, wanted)
    for file in conversion.destination.files:
        for entry, fill in zip(file.entries, file.fills, strict=True):
            chunks = chunks_of(fill, entry, conversion.opened.tensors)
            yield file.name, entry.name, b"".join(map(bytes, chunks))


@pytest.mark.parametrize("example", MERGEABLE)
def test_merging_on_the_way_is_merging_first(example: str, tmp_path: Path) -> None:
    """With an adapter on each of its matrices, a model comes out as the one whose matrices are W + alpha/r B A."""
    config = EXAMPLES[example]
    buffers = published_buffers(model_from_hf(config))
    generator = torch.Generator().manual_seed(5)
    tensors = {buffer.name: whole_numbers(buffer.shape, generator) for buffer in buffers}
    pairs = {
        name.removesuffix(".weight"): (
            whole_numbers((RANK, tensor.shape[1]), generator),
            whole_numbers((tensor.shape[0], RANK), generator),
        )
        for name, tensor in tensors.items()
        if tensor.dim() == 2 and name.endswith(".weight")
    }
    assert pairs
    sums = {f"{name}.weight": tensors[f"{name}.weight"] + 2.0 * (b @ a) for name, (a, b) in pairs.items()}
    plain, merged = written(tmp_path / "plain", config, tensors), written(tmp_path / "merged", config, tensors | sums)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))
    parts = {f"{PREFIX}{name}.lora_{'AB'[i]}.weight": pair[i] for name, pair in pairs.items() for i in range(2)}
    save_file(parts, adapter / WEIGHTS)
    tried = 0
    for layout in LAYOUTS:
        try:
            truth = list(files_of(merged, Wanted(format="classic", layout=layout)))
        except PlanError:
            continue  # a layout that this model cannot have
        assert list(files_of(plain, Wanted(format="classic", layout=layout, adapter=str(adapter)))) == truth
        tried += 1
    assert tried
