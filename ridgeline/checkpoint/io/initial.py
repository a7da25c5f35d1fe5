"""First weights from elsewhere: each rank reads just its boxes, into the model and the optimizer's fp32 copy of it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ridgeline.checkpoint.holdings import Holding, fragments_of
from ridgeline.checkpoint.io.agreement import together
from ridgeline.checkpoint.io.classic_source import is_classic
from ridgeline.checkpoint.io.dist_source import checkpoint_weights
from ridgeline.checkpoint.io.hf import hf_weights
from ridgeline.checkpoint.io.open_source import open_source
from ridgeline.checkpoint.io.recorded import find_checkpoint
from ridgeline.checkpoint.io.sources import weights_in
from ridgeline.checkpoint.io.state import held, masters
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.core.job import Init
from ridgeline.core.model import ModelSpec
from ridgeline.models.program import RankProgram
from ridgeline.models.runtime.build import Built


def load_initial(built: Built) -> None:
    """Load the weights that the job's ``init`` names, if it names any; every rank calls it.

    Raises:
        CheckpointError: On every rank if any failed: they do not fit the model, or are damaged.
    """
    job = built.program.job
    source = job.init.hf or job.init.checkpoint
    if source is not None:
        together(lambda: _load(built, weights_of(job.init, job.model)), Path(source))


def weights_of(init: Init, model: ModelSpec) -> Weights:
    """The weights that a job starts from."""
    if init.hf is not None:
        return hf_weights(init.hf, model)
    assert init.checkpoint is not None
    if is_classic(Path(init.checkpoint)):
        return weights_in(open_source(init.checkpoint, model=model))
    return checkpoint_weights(find_checkpoint(init.checkpoint), model)


def load_weights(program: RankProgram, chunks: Sequence[torch.nn.Module], weights: Weights) -> None:
    """Read a rank's part of a model's weights into its chunks, which may be wrapped; adapters stay as they are."""
    for holding, param in held(program, chunks):
        if holding.owned.local.param.low_rank:
            continue
        _read(weights, holding, param.detach().view(-1), 0, holding.elements)


def _load(built: Built, weights: Weights) -> None:
    load_weights(built.program, built.chunks, weights)
    for holding, slot in masters(built):
        if holding.owned.local.param.low_rank:
            continue
        _read(weights, holding, slot.main, slot.start, slot.stop)


def _read(weights: Weights, holding: Holding, flat: torch.Tensor, start: int, stop: int) -> None:
    """Read a flat range of a rank's parameter into ``flat``, which is that range."""
    for fragment in fragments_of(holding, start, stop):
        begin = fragment.start - start
        out = flat[begin : begin + fragment.box.elements].view(fragment.box.shape)
        weights(holding.owned.local.fqn, fragment.box, out)
