"""Every family computes what its transformers implementation computes: logits, loss and every gradient."""

import functools

import numpy as np
import pytest

from ridgeline.core.job import Init
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.parity.hf_models import CASES, SEQ_LEN, judge, tokens
from tests.parity.on_ranks import compute
from tests.parity.small import job_of
from tests.parity.wholes import different, whole_gradients

LAYOUTS = {
    "alone": (1, {}),
    "tp2": (2, {"layout__tp": 2, "layout__sp": True}),
    "pp2": (2, {"layout__pp": 2}),
    "tp2 ep2": (2, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    "tp2 etp2": (2, {"layout__tp": 2, "layout__sp": True, "layout__etp": 2}),
}
OF_EXPERTS = ("tp2 ep2", "tp2 etp2")
EVERY_DAY = (
    *("llama", "llama biased", "llama llama3", "qwen2 window", "qwen3", "mixtral", "qwen3_moe unnormalised"),
    "deepseek_v3 yarn",
)
ONE_LAYOUT = {
    **dict.fromkeys(("glm", "longcat_flash", "minicpm3", "phi3", "seed_oss"), "tp2"),
    "internlm3": "pp2",
    "mamba2 biased": "pp2",
    "nemotron_h experts": "tp2",
}
"""Of these families, every day in the layout that tries most of them."""

COVERING = {
    *ONE_LAYOUT.items(),
    *((case, layout) for case in EVERY_DAY for layout in LAYOUTS if layout not in OF_EXPERTS),
    *((case, layout) for case in ("gpt_oss", "minimax_m2") for layout in ("alone", "tp2 etp2")),
}
PAIRS = [
    pytest.param(case, layout, marks=() if (case, layout) in COVERING else pytest.mark.full)
    for case, (_, fields) in CASES.items()
    for layout in LAYOUTS
    if layout not in OF_EXPERTS or "num_experts_per_tok" in fields
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A case as transformers sees it, and the folder it was saved to."""

    @functools.cache
    def of_case(case: str):
        folder = tmp_path_factory.mktemp("hf")
        return judge(case, folder), folder

    return of_case


@pytest.mark.parametrize(("case", "layout"), PAIRS)
def test_family(ranks, judged, case, layout):
    truth, folder = judged(case)
    world_size, fields = LAYOUTS[layout]
    model = model_from_hf(read_hf_config(folder))
    job = job_of(model, world_size=world_size, batch__gbs=2, batch__seq_len=SEQ_LEN, init__hf=str(folder), **fields)
    assert job.init == Init(hf=str(folder))
    results = ranks.run(compute, world_size, job, tokens().numpy())
    assert results[0].loss == pytest.approx(truth.loss, rel=1e-6)
    for logits in [logits for result in results for logits in result.logits]:
        assert np.linalg.norm(logits - truth.logits) < 1e-5 * np.linalg.norm(truth.logits)
    assert different(whole_gradients(result.gradients for result in results), truth.gradients) == {}
