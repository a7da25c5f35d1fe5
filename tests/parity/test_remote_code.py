"""Families known from published code alone compute what a float64 reference computes: logits, loss, every gradient."""

import json

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ridgeline.models.hf_config import model_from_hf
from ridgeline.models.hf_names import hf_shapes, hf_sources
from ridgeline.models.hf_source import row_runs
from tests.models.examples import EXAMPLES, REMOTE, VARIANTS
from tests.models.remote_code import logits_of
from tests.parity.cases.case import ALL, LAYOUTS, OF_EXPERTS
from tests.parity.on_ranks import compute
from tests.parity.small import job_of
from tests.parity.wholes import different, whole_gradients

SEQ_LEN = 22
CASES = {
    name: {**config, **({"num_attention_heads": 4} if config["model_type"] == "baichuan" else {})}  # a power of two
    for name, config in {**EXAMPLES, **VARIANTS}.items()
    if config["model_type"] in REMOTE
}
WITH_EXPERTS = {name for name, config in CASES.items() if config.get("num_experts", 1) > 1}
EVERY_DAY = {
    *((name, "tp2") for name in CASES if name not in ("aquila", "baichuan, first 13B", *WITH_EXPERTS)),
    *((name, "tp2 ep2") for name in WITH_EXPERTS),
    *((name, "pp2") for name in ("baichuan", "hunyuan")),
}


def published(config) -> dict[str, torch.Tensor]:
    """Random tensors under their published names; vectors are those of norms and biases, around 1 and 0."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in hf_shapes(model_from_hf(config)).items():
        noise = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and name.endswith(("weight", "scale"))
        tensors[name] = noise * 0.2 + 1 if norm else noise * 0.2
    return tensors


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        pytest.param(case, layout, marks=() if (case, layout) in EVERY_DAY else pytest.mark.full)
        for case in CASES
        for layout in (*ALL, *(OF_EXPERTS if case in WITH_EXPERTS else ()))
    ],
)
def test_family(ranks, tmp_path, case, layout):
    config, (world_size, fields) = CASES[case], LAYOUTS[layout]
    layers = 2 * config.get("cla_share_factor", 2)  # two stages of whole groups
    config = {**config, "num_layers" if "num_layers" in config else "num_hidden_layers": layers}
    config |= {"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in config else {}
    tensors, model = published(config), model_from_hf(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = torch.randint(0, model.vocab_size, (2, SEQ_LEN + 1), generator=torch.Generator().manual_seed(3))

    exact = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    logits = logits_of(config, exact, text[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    loss.backward()
    trained = {fqn: source for fqn, source in hf_sources(model).items() if not fqn.endswith("expert_bias")}
    gradients = {fqn: _assembled(source, exact) for fqn, source in trained.items()}

    sizes = {"batch__gbs": 2, "batch__seq_len": SEQ_LEN, **fields}
    job = job_of(model, world_size=world_size, init__hf=str(tmp_path), **sizes)
    results = ranks.run(compute, world_size, job, text.numpy())
    assert results[0].loss == pytest.approx(loss.item(), rel=1e-6)
    truth = logits.detach().numpy()
    for ours in [ours for result in results for ours in result.logits]:
        assert np.linalg.norm(ours - truth) < 1e-5 * np.linalg.norm(truth)
    assert different(whole_gradients(result.gradients for result in results), gradients) == {}


def _assembled(source, exact) -> np.ndarray:
    """The gradient of one of our parameters, from those of the published ones; the logits judge their order."""
    counts = sum(tensor.shape[0] for name, tensor in exact.items() if name in _names(source))
    runs = row_runs(source, counts)
    return torch.cat([exact[run.tensor].grad[run.start : run.start + run.count] for run in runs]).float().numpy()


def _names(source) -> set[str]:
    if hasattr(source, "runs"):
        return {run.tensor for run in source.runs}
    return {value for value in attrs.asdict(source).values() if isinstance(value, str)}
