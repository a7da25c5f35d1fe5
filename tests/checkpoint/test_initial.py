"""Training starts from published weights, under any layout, where transformers says it does; and goes back to it."""

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from ridgeline.checkpoint.io.convert import export_hf, import_hf
from ridgeline.core.codec import dumps
from ridgeline.core.job import Init
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.checkpoint.hf_models import random_model
from tests.checkpoint.test_dist import full, job, quick
from tests.checkpoint.training import batch_of, checkpoint_of, resumed, started_loss, uninterrupted
from tests.pool import Pool, RankError

CASES = {
    "Qwen2 tp2 pp2": ("Qwen2", {"layout__tp": 2, "layout__pp": 2, "layout__stages": (2, 1)}),
    "Qwen3Moe ep2": ("Qwen3Moe", {"layout__ep": 2}),
}
CASES_FULL = {
    "Llama pp2": ("Llama", {"layout__pp": 2, "layout__stages": (1, 2)}),
    "Qwen3 tp2 sp": ("Qwen3", {"layout__tp": 2, "layout__sp": True}),
    "Mixtral etp2": ("Mixtral", {"layout__tp": 2, "layout__etp": 2, "layout__sp": True}),
}
WORLD = {"Qwen2 tp2 pp2": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "Qwen2": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "Qwen3Moe": {"num_experts": 4},
    "Mixtral": {"num_local_experts": 4},
}


def transformers_loss(model: Any, samples: range) -> float:
    """The mean loss of samples, one by one."""
    batch = batch_of(samples, seq_len=16, vocab=131)
    with torch.no_grad():
        logits = model(batch.tokens).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()))


@pytest.mark.parametrize(("family", "layout"), [*quick(CASES), *full(CASES_FULL)])
def test_starts_where_transformers_is(ranks: Pool, tmp_path: Path, family: str, layout: dict[str, Any]) -> None:
    """From a folder, and from a checkpoint made of it, each rank reads its part, and the loss is transformers'.

    And a step saved from there and exported gives transformers the loss that training goes on with.
    """
    hf = random_model(family, **CHANGES.get(family, {}))
    hf.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported")
    world_size = layout.get("layout__tp", 1) * layout.get("layout__pp", 1) * layout.get("layout__ep", 1)
    started = job(model_from_hf(read_hf_config(tmp_path / "hf")), world_size, **layout)
    expected = transformers_loss(hf, range(8))

    from_hf = attrs.evolve(started, init=Init(hf=str(tmp_path / "hf")))
    from_checkpoint = attrs.evolve(started, init=Init(checkpoint=str(tmp_path / "imported")))
    results = ranks.run(started_loss, world_size, dumps(from_hf))
    assert results[0][0] == pytest.approx(expected, rel=1e-6)
    assert ranks.run(started_loss, world_size, dumps(from_checkpoint)) == results

    ranks.run(uninterrupted, world_size, dumps(started), str(tmp_path), 2, 2)
    export_hf(checkpoint_of(tmp_path, 2), tmp_path / "out")
    trained = type(hf).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    (loss, _), *_ = ranks.run(resumed, world_size, dumps(started), checkpoint_of(tmp_path, 2), 3)[0][0]
    assert transformers_loss(trained, range(16, 24)) == pytest.approx(loss, rel=1e-6)


def test_masters_start_from_full_precision(ranks: Pool, tmp_path: Path) -> None:
    """In bf16 the optimizer's copy starts from the published fp32 weights, not from their rounding."""
    hf = random_model("Llama")
    hf.save_pretrained(tmp_path / "hf")
    model = model_from_hf(read_hf_config(tmp_path / "hf"))
    text = dumps(job(model, 2, precision__params="bf16", init=Init(hf=str(tmp_path / "hf"))))
    ranks.run(save_started, 2, text, str(tmp_path / "run"))
    export_hf(tmp_path / "run", tmp_path / "out", dtype="fp32")
    back = type(hf).from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(hf.parameters(), back.parameters(), strict=True))


def save_started(text: str, folder: str) -> None:
    from ridgeline.checkpoint.io.dist import save
    from ridgeline.checkpoint.io.initial import load_initial
    from tests.checkpoint.training import built_of

    with built_of(text) as built:
        load_initial(built)
        save(folder, built, step=0, consumed_samples=0)


def test_weights_of_another_model_are_refused(ranks: Pool, tmp_path: Path) -> None:
    """Weights that do not fit are named on every rank before anything is trained."""
    random_model("Llama").save_pretrained(tmp_path / "hf")
    other = model_from_hf(random_model("Llama", vocab_size=99, num_hidden_layers=2).config.to_dict())
    text = dumps(job(other, 2, init=Init(hf=str(tmp_path / "hf"))))
    with pytest.raises(RankError, match=r"model.embed_tokens.weight: has shape \(131, 48\), expected \(99, 48\)"):
        ranks.run(started_loss, 2, text)


def test_weights_alone_do_not_resume(ranks: Pool, tmp_path: Path) -> None:
    """A checkpoint without a training state is refused as one to resume from."""
    random_model("Llama").save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported")
    text = dumps(job(model_from_hf(read_hf_config(tmp_path / "hf")), 1))
    with pytest.raises(
        RankError, match=r"holds weights and no state of a training run; start from it with init\.checkpoint"
    ):
        ranks.run(resumed, 1, text, str(tmp_path / "imported"), 1)
