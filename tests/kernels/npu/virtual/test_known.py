"""What a program reads of fake tensors: computed, balanced, taken from this rank, or refused."""

import pytest
import torch
from torch import distributed

from ridgeline.core.errors import LoweringError
from ridgeline.kernels.npu.virtual.fake import fake_npu
from ridgeline.kernels.npu.virtual.known import known_values

pytestmark = pytest.mark.usefixtures("virtual_npu")


def test_integers_are_computed() -> None:
    """Through views, writes in place, other devices and numpy, as torch itself computes them."""

    def numbers(device: str) -> list[object]:
        x = torch.arange(24, device=device).view(4, 6)
        x[1:, ::2] += 100
        chosen = x.masked_select(x % 3 == 0)
        return [x.sum(0).tolist(), chosen.cpu().numpy().tolist(), int(x.max()), x[x > 100].shape, x.nonzero().shape]

    expected = numbers("cpu")
    with fake_npu(), known_values() as known:
        assert numbers("npu") == expected
    assert known.reads == {}


def test_a_router_chooses_each_as_often_as_any_other() -> None:
    with fake_npu(), known_values():
        scores = torch.randn(12, 8, device="npu")
        chosen = scores.topk(2, dim=-1).indices
        routes = torch.zeros_like(scores).int().scatter(1, chosen, 1).bool()
        assert routes.sum(0).tolist() == [3] * 8
        assert routes.sum(1).tolist() == [2] * 12
        assert scores.masked_select(routes).shape == (24,)


def test_other_ranks_send_what_this_one_does() -> None:
    """Gathered integers are as many times this rank's, and so are gathered objects."""
    with fake_npu(rank=3, world_size=4), known_values():
        counts, gathered = torch.tensor([5, 7], device="npu"), torch.empty(8, dtype=torch.int64, device="npu")
        distributed.all_gather_into_tensor(gathered, counts)
        assert gathered.tolist() == [5, 7] * 4
        objects = [None] * 4
        distributed.all_gather_object(objects, {"rank": 3})
        assert objects == [{"rank": 3}] * 4


def test_a_real_number_is_one_and_its_place_is_told() -> None:
    with fake_npu(), known_values() as known:
        assert torch.randn(4, device="npu").norm().item() == 1.0
    ((place, times),) = known.reads.items()
    assert "test_known.py" in place
    assert times == 1


def test_an_integer_of_weights_is_refused() -> None:
    """No number can stand for it: a shape may follow from it."""
    with fake_npu(), known_values(), pytest.raises(LoweringError, match=r"test_known\.py.*reads a torch\.int64"):
        torch.randn(4, device="npu").argmax().item()


def test_modules_are_converted_in_place() -> None:
    """To bf16, with the marks on their parameters."""
    with fake_npu(), known_values():
        module = torch.nn.Linear(4, 4, device="npu")
        weight = module.weight
        weight.mark = "tp"  # pyright: ignore[reportAttributeAccessIssue]
        module.bfloat16()
        assert module.weight is weight
        assert (weight.dtype, getattr(weight, "mark", None)) == (torch.bfloat16, "tp")
