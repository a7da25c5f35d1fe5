"""Every family that this runtime runs is compared with an outside judge, every day in some layout."""

import pytest

from ridgeline.core.errors import LoweringError
from ridgeline.models.families.table import FAMILIES
from ridgeline.models.hf_config import model_from_hf
from ridgeline.models.lowerable import check_lowerable
from tests.models.examples import EXAMPLES, REMOTE
from tests.parity.cases.table import CASES
from tests.parity.small import job_of

JUDGED_BY_TRANSFORMERS = {name.split()[0] for name in CASES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_registered_family_has_a_case(family):
    """It enters `tests.parity.cases` with its first weights or, unknown to transformers, `tests.models.remote_code`."""
    if family in JUDGED_BY_TRANSFORMERS or family in REMOTE:  # `test_remote_code` takes all of the latter
        return
    if FAMILIES[family].weights is not None:
        with pytest.raises(LoweringError):
            check_lowerable(job_of(model_from_hf(EXAMPLES[family])))


@pytest.mark.parametrize("family", sorted(JUDGED_BY_TRANSFORMERS))
def test_a_family_is_compared_every_day(family):
    layouts = [layout for name, case in CASES.items() if name.split()[0] == family for layout in case.every_day]
    assert layouts, "some case of a family is in the quick suite"


@pytest.mark.parametrize("name", CASES)
def test_layouts_of_every_day_are_among_all(name):
    assert set(CASES[name].every_day) <= set(CASES[name].layouts)
