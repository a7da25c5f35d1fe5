"""The list of what torch_npu lacks: each gap is still there, and each mending mends."""

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from ridgeline.kernels.npu.virtual.gaps import GAPS, Gap, mend
from ridgeline.kernels.npu.virtual.processes import VirtualProcess

ROWS = pytest.mark.parametrize("row", range(len(GAPS)), ids=[gap.op for gap in GAPS])


def failure(row: int) -> str | None:
    """On a torch_npu that nobody mended: how the probe of a gap fails."""
    with FakeTensorMode():
        try:
            GAPS[row].probe()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


@ROWS
def test_a_gap_is_there(row: int, virtual_ranks: list[VirtualProcess]) -> None:
    """The probe fails on a bare torch_npu. If it does not, torch_npu has closed the gap: take the row away."""
    assert virtual_ranks[0].call(f"{__name__}:failure", row, file=__file__) is not None


@ROWS
@pytest.mark.usefixtures("virtual_npu")
def test_a_fake_mends_it(row: int) -> None:
    """With the fakes in place the probes of their rows pass, and no others do."""
    mend()
    assert (failure(row) is None) == (GAPS[row].fake is not None)


@pytest.mark.parametrize("gap", GAPS, ids=lambda gap: gap.op)
def test_every_gap_has_an_answer(gap: Gap) -> None:
    """A gap is mended by a fake, or the row says how our kernels do without."""
    assert (gap.fake is None) == bool(gap.around)
