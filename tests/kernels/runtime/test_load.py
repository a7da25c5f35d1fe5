"""Importing what was chosen."""

import pytest

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.runtime.load import load_kernel
from ridgeline.kernels.table import KERNELS, Kernel

ROWS = [kernel for kernels in KERNELS.values() for kernel in kernels]


@pytest.mark.parametrize("kernel", ROWS, ids=lambda kernel: f"{kernel.op}-{kernel.name}")
def test_every_row_loads(kernel: Kernel) -> None:
    """The import string of every row leads to a function, whether torch_npu is installed or not."""
    assert callable(load_kernel(kernel.op, kernel.name))


def test_what_is_not_there() -> None:
    """An unknown kernel and one whose package is missing are named."""
    with pytest.raises(LoweringError, match=r"kernel='torhc': unknown for op='rope'; did you mean 'torch'\?"):
        load_kernel("rope", "torhc")
    row = Kernel(op="rope", name="x", function="no_such_package.rope:rope", devices=("cpu",), dtypes=("float32",))
    with pytest.raises(LoweringError, match=r"kernel='x' of op='rope' cannot be imported: .*no_such_package"):
        load_kernel("rope", "x", table={"rope": (row,)})
