"""Every family computes what its transformers implementation computes: logits, loss and every gradient."""

import functools

import numpy as np
import pytest

from ridgeline.core.job import Init
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from tests.parity.cases.case import LAYOUTS
from tests.parity.cases.table import CASES
from tests.parity.hf_models import SEQ_LEN, judge, tokens
from tests.parity.on_ranks import compute
from tests.parity.small import job_of
from tests.parity.wholes import different, whole_gradients

PAIRS = [
    pytest.param(name, layout, marks=() if layout in case.every_day else pytest.mark.full)
    for name, case in CASES.items()
    for layout in case.layouts
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
    sizes = {"batch__gbs": 2, "batch__seq_len": SEQ_LEN, "objective__indexer_loss": 0.0, **fields}
    job = job_of(model, world_size=world_size, init__hf=str(folder), **sizes)
    assert job.init == Init(hf=str(folder))
    results = ranks.run(compute, world_size, job, tokens().numpy())
    assert results[0].loss == pytest.approx(truth.loss, rel=1e-6)
    for logits in [logits for result in results for logits in result.logits]:
        assert np.linalg.norm(logits - truth.logits) < 1e-5 * np.linalg.norm(truth.logits)
    assert different(whole_gradients(result.gradients for result in results), truth.gradients) == {}
