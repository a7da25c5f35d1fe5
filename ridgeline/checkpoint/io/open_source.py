"""A folder of weights, whatever its format."""

from pathlib import Path

import attrs

from ridgeline.checkpoint.classic import POINTER
from ridgeline.checkpoint.io.classic_source import is_classic, open_classic, step_folder
from ridgeline.checkpoint.io.dist_source import open_dist
from ridgeline.checkpoint.io.hf import BIN, SAFETENSORS, hf_tensors, open_hf
from ridgeline.checkpoint.io.recorded import find_checkpoint
from ridgeline.checkpoint.io.sources import Opened
from ridgeline.checkpoint.io.torch_dist.index import INDEX
from ridgeline.core.errors import CheckpointError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import model_from_hf, read_hf_config, without_quantisation
from ridgeline.models.hf_names import hf_mtp_name


def open_source(
    source: str | Path, *, model: ModelSpec | None = None, masters: bool = False, optimizer: bool = False
) -> Opened:
    """Open a folder of weights, whatever its format.

    Args:
        source: A Hugging Face folder, a run of Ridgeline or one step of it, or a checkpoint of Megatron-LM.
        model: Whose weights they are, where the folder does not say so.
        masters: Read the optimizer's fp32 copies where there are any.
        optimizer: Open the optimizer's state too.

    Raises:
        CheckpointError: It is none of these, has no such state, is damaged, or does not hold the weights of its model.
    """
    folder = Path(source)
    if not folder.is_dir():
        way_out = f"; name the folder that it lies in: {folder.parent}" if folder.is_file() else ""
        raise CheckpointError(f"source={source}: is no folder{way_out}")
    if is_hf(folder):
        if optimizer:
            raise CheckpointError(f"source={source}: holds weights and no optimizer's state; leave out --optimizer")
        return open_hf(folder, model or hf_model(folder))
    if is_classic(folder):
        step = step_folder(folder)
        if (step / INDEX).is_file():
            return open_dist(step, model=model, optimizer=optimizer)
        return open_classic(folder, model=model, optimizer=optimizer)
    if steps := sorted(path.name for path in folder.glob("iter_*") if path.is_dir()):
        raise CheckpointError(f"file={folder / POINTER}: is missing; write it, or name one step: {', '.join(steps)}")
    step = folder if (folder / INDEX).is_file() else find_checkpoint(folder)
    return open_dist(step, model=model, masters=masters, optimizer=optimizer)


def is_hf(folder: Path) -> bool:
    """Whether a folder is one of Hugging Face weights, its config perhaps missing."""
    return (folder / "config.json").is_file() or any(
        (folder / f"{name}{end}").is_file() for name in (SAFETENSORS, BIN) for end in ("", ".index.json")
    )


def hf_model(folder: Path) -> ModelSpec:
    """The model of a Hugging Face folder, its weights dequantised.

    Where a config counts layers of multi-token prediction and the folder holds none, as transformers saves it, the
    model is one without; where it counts none and the folder holds one, as Qwen3-Next's and LongCat's, one with it.

    Raises:
        CheckpointError: No weights are there, or a file of them is damaged.
        SpecError: The config is none that is known.
    """
    model = model_from_hf(without_quantisation(read_hf_config(folder)), name=folder.resolve().name)
    holds = hf_mtp_name(model) in hf_tensors(folder)
    return attrs.evolve(model, mtp=model.mtp or 1) if holds else attrs.evolve(model, mtp=0, mtp_block=None)
