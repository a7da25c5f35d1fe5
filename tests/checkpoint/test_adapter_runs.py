"""A run with adapters resumes under any layout, and gives away what it learned: merged, or the adapters alone."""

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import transformers

from ridgeline.checkpoint.io.convert import Wanted, convert, export_adapter, export_hf, plan_conversion
from ridgeline.checkpoint.io.hf import hf_tensors
from ridgeline.checkpoint.pieces import row_major
from ridgeline.core.codec import dumps
from ridgeline.core.errors import CheckpointError
from ridgeline.core.job import Lora
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.checkpoint.hf_models import random_model
from tests.checkpoint.training import batch_of, resumed, uninterrupted
from tests.parity.small import job_of
from tests.pool import Pool, RankError

STEPS = 3
LAYOUT = {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}


@attrs.frozen
class Saved:
    """A run of four steps under tp and ep, saved before the first and the last."""

    text: str
    folder: Path
    last_loss: float


@pytest.fixture(scope="module")
def run(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("run")
    random_model("Mixtral", num_local_experts=4).config.save_pretrained(folder / "config")
    model = model_from_hf(read_hf_config(folder / "config"))
    text = job_text(model, **LAYOUT)
    ranks.run(uninterrupted, 2, text, str(folder), 0, 0)
    (losses, _), _ = ranks.run(uninterrupted, 2, text, str(folder), STEPS, STEPS + 1)
    return Saved(text, folder, losses[0][0])


def job_text(model, *, world_size: int = 2, adapter: Lora | None = None, **fields) -> str:
    sizes = {"batch__seq_len": 16, "batch__gbs": 4, "optimizer__lr": 0.05, "memory__distributed_optimizer": True}
    job = job_of(model, world_size=world_size, **sizes, **fields)
    return dumps(attrs.evolve(job, adapter=adapter or Lora(rank=3, alpha=5.0)))


def test_it_resumes_exactly_and_under_other_layouts(ranks: Pool, run: Saved) -> None:
    """Under its own layout bit for bit."""
    model = model_from_hf(read_hf_config(run.folder / "config"))
    step = str(run.folder / f"step_{STEPS:07}")
    (again, _), _ = ranks.run(resumed, 2, run.text, step, STEPS + 1)
    assert again[0][0] == run.last_loss
    for layout in ({"layout__pp": 2, "layout__stages": (2, 1)}, {}):
        (others, _), _ = ranks.run(resumed, 2, job_text(model, **layout), step, STEPS + 1)
        assert others[0][0] == pytest.approx(run.last_loss, rel=1e-5)


def test_other_adapters_are_told(ranks: Pool, run: Saved) -> None:
    """Of another rank they would not fit, and of another scale mean something else."""
    model = model_from_hf(read_hf_config(run.folder / "config"))
    other = job_text(model, **LAYOUT, adapter=Lora(rank=3, alpha=6.0))
    with pytest.raises(RankError, match=r"was saved with adapter=Lora\(rank=3, alpha=5.0.* start from its weights"):
        ranks.run(resumed, 2, other, str(run.folder / f"step_{STEPS:07}"), STEPS)


def test_what_it_gives_away_computes_what_it_does(run: Saved, tmp_path: Path) -> None:
    """Merged weights under transformers have the loss of the run's next step; so has the base with the adapters."""
    export_hf(run.folder / "step_0000000", tmp_path / "base")
    export_hf(run.folder / f"step_{STEPS:07}", tmp_path / "merged")
    export_adapter(run.folder / f"step_{STEPS:07}", tmp_path / "adapter")
    assert loss_of(tmp_path / "merged") == pytest.approx(run.last_loss, rel=1e-5)
    assert loss_of(tmp_path / "base") != pytest.approx(run.last_loss, rel=1e-3)
    wanted = Wanted(format="hf", adapter=str(tmp_path / "adapter"))
    convert(plan_conversion(tmp_path / "base", wanted), tmp_path / "by hand")
    merged, by_hand = values(tmp_path / "merged"), values(tmp_path / "by hand")
    assert merged.keys() == by_hand.keys()
    for name, tensor in merged.items():
        # The same sum of three products, of blocks of other sizes.
        assert np.allclose(tensor, by_hand[name], rtol=0, atol=1e-6), name
    with pytest.raises(CheckpointError, match=r"holds no adapters; only a run with job\.adapter does"):
        export_adapter(tmp_path / "base", tmp_path / "none")
    with pytest.raises(CheckpointError, match="whose optimizer's state is of them alone; leave out --optimizer"):
        plan_conversion(run.folder / f"step_{STEPS:07}", Wanted(format="torch_dist", optimizer=True))


def loss_of(folder: Path) -> float:
    """Under transformers, of the samples that the run's last step reads."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batch = batch_of(range(4 * STEPS, 4 * STEPS + 4), seq_len=16, vocab=model.config.vocab_size)
    with torch.no_grad():
        logits = model(batch.tokens).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).item()


def values(folder: Path) -> dict[str, np.ndarray]:
    tensors = hf_tensors(folder).items()
    return {name: tensor.strided(0, tensor.shape, row_major(tensor.shape)).numpy() for name, tensor in tensors}
