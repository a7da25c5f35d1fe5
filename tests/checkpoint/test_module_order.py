"""Parameters are numbered as the modules that are built number them, in every family."""

import pytest
import transformers

from ridgeline.core.codec import dumps
from ridgeline.core.job import Job
from ridgeline.models.hf_config import model_from_hf
from tests.checkpoint.test_dist import job
from tests.checkpoint.training import module_orders
from tests.parity.cases.case import SHARED
from tests.parity.cases.table import CASES
from tests.pool import Pool

EVERY_DAY = (
    *("qwen3", "gemma2", "qwen2_moe", "gpt_oss", "deepseek_v3", "deepseek_v32", "longcat_flash", "qwen3_next"),
    "nemotron_h",
    "step3p5",
)


def small_job(name: str) -> Job:
    case = CASES[name]
    shared = {field: size for field, size in SHARED.items() if field not in case.without}
    config = transformers.AutoConfig.for_model(name.split()[0], **{**shared, **case.fields})
    return job(model_from_hf(config.to_dict()), 1)


@pytest.mark.parametrize("names", [EVERY_DAY, pytest.param(tuple(CASES), marks=pytest.mark.full)], ids=["some", "all"])
def test_parameters_stand_in_the_order_of_their_modules(ranks: Pool, names: tuple[str, ...]) -> None:
    """Where Megatron-core's optimizer finds each parameter is where the plan says."""
    (orders,) = ranks.run(module_orders, 1, [dumps(small_job(name)) for name in names])
    for name, (modules, planned) in zip(names, orders, strict=True):
        assert planned == modules, name
