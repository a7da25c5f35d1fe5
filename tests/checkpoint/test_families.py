"""A run of any family goes on where it stopped, on the ranks it had and on others."""

from pathlib import Path

import pytest
import transformers

from ridgeline.core.codec import dumps
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import model_from_hf
from tests.checkpoint.test_dist import job
from tests.checkpoint.training import checkpoint_of, resumed, uninterrupted
from tests.parity.cases.case import SHARED
from tests.parity.cases.table import CASES
from tests.pool import Pool

EVERY_DAY = ("qwen3_next", "step3p5")
DRAWN = ("phimoe",)
"""What their routers draw depends on which rank runs a layer."""


def model_of(name: str) -> ModelSpec:
    """The small model of a case."""
    case = CASES[name]
    shared = {field: size for field, size in SHARED.items() if field not in case.without}
    config = transformers.AutoConfig.for_model(name.split()[0], **{**shared, **case.fields})
    return model_from_hf(config.to_dict())


@pytest.mark.parametrize(
    "name", [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.full) for name in CASES]
)
def test_a_run_goes_on(ranks: Pool, tmp_path: Path, name: str) -> None:
    """Bit for bit under its own layout; under another as far as sums in fp32 in another order let it."""
    split, staged = (
        dumps(job(model_of(name), 2, **layout)) for layout in ({"layout__tp": 2, "layout__sp": True}, {"layout__pp": 2})
    )
    never_stopped = ranks.run(uninterrupted, 2, split, str(tmp_path), 1, 2)
    assert ranks.run(resumed, 2, split, checkpoint_of(tmp_path, 1), 2) == never_stopped
    if name.split()[0] in DRAWN:
        return
    for losses, _ in ranks.run(resumed, 2, staged, checkpoint_of(tmp_path, 1), 2):
        assert losses == [pytest.approx(step, rel=1e-5) for step in never_stopped[0][0]]
