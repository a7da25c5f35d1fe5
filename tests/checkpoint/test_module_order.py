"""Parameters are numbered as the modules that are built number them, in every family."""

import pytest

from ridgeline.core.codec import dumps
from tests.checkpoint.test_dist import job
from tests.checkpoint.test_families import model_of
from tests.checkpoint.training import module_orders
from tests.parity.cases.table import CASES
from tests.pool import Pool

EVERY_DAY = (
    *("qwen3", "gemma2", "qwen2_moe", "gpt_oss", "deepseek_v3", "deepseek_v32", "longcat_flash", "qwen3_next"),
    "nemotron_h",
    "step3p5",
)


@pytest.mark.parametrize("names", [EVERY_DAY, pytest.param(tuple(CASES), marks=pytest.mark.full)], ids=["some", "all"])
def test_parameters_stand_in_the_order_of_their_modules(ranks: Pool, names: tuple[str, ...]) -> None:
    """Where Megatron-core's optimizer finds each parameter is where the plan says."""
    (orders,) = ranks.run(module_orders, 1, [dumps(job(model_of(name), 1)) for name in names])
    for name, (modules, planned) in zip(names, orders, strict=True):
        assert planned == modules, name
