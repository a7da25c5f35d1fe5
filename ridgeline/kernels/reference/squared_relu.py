"""The activation squared ReLU in plain torch."""

from torch import Tensor


def squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0)^2`` of every element.

    Args:
        x: Any shape, float.

    Returns:
        The same shape and dtype.

    Source:
        arXiv 2109.08668, section 3.1.
    """
    return x.relu().square()
