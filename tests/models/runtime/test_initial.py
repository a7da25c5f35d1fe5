"""Initial weights are one draw of the whole model, of which every layout sees its parts."""

import pytest
import torch

from ridgeline.core.params import Param
from ridgeline.models.runtime.initial import BLOCK_ELEMENTS, fill, initial_std
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.shards import Shard, Split, local_shape, slices_of
from tests.parity.small import MODELS

LARGE = (3000, 2002)
"""More than one block."""


def part(param, shard, rank, mesh, *, seed=7, dtype=torch.float32):
    tensor = torch.full(local_shape(shard, mesh), torch.nan, dtype=dtype)
    fill(tensor, param, "x.weight", slices_of(shard, rank, mesh), norm="rms", seed=seed, std=0.5)
    return tensor


@pytest.mark.parametrize("role", ["qkv", "down"])
@pytest.mark.parametrize("splits", [(Split(0, "tp"),), (Split(0, "tp", 2),), (Split(1, "tp"),), ()])
@pytest.mark.parametrize("tp", [1, 2])
def test_parts_make_the_whole(tp, splits, role):
    assert LARGE[0] * LARGE[1] > BLOCK_ELEMENTS
    mesh, param = Mesh(tp=tp), Param("x.weight", LARGE, role)
    whole = part(param, Shard(LARGE), 0, Mesh())
    for rank in range(tp):
        boxes = slices_of(Shard(LARGE, splits), rank, mesh)
        expected = torch.cat([whole[tuple(slice(*side) for side in box)] for box in boxes])
        assert torch.equal(part(param, Shard(LARGE, splits), rank, mesh), expected)


def test_padding_is_zero_and_changes_nothing():
    param = Param("x.weight", (5, 8), "embedding")
    shard = Shard((8, 8), (Split(0, "tp"),))
    whole = part(param, Shard((5, 8)), 0, Mesh())
    parts = torch.cat([part(param, shard, rank, Mesh(tp=4)) for rank in range(4)])
    assert torch.equal(parts, torch.cat([whole, torch.zeros(3, 8)]))


def test_values_are_normal_and_named_after_seed_and_parameter():
    param = Param("x.weight", LARGE, "qkv")
    values = part(param, Shard(LARGE), 0, Mesh())
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 0.5) < 1e-3
    rows = BLOCK_ELEMENTS // LARGE[1]
    assert not torch.equal(values[: LARGE[0] - rows], values[rows:]), "each block is a draw of its own"
    assert not torch.equal(values, part(param, Shard(LARGE), 0, Mesh(), seed=8))
    assert torch.equal(part(param, Shard(LARGE), 0, Mesh(), dtype=torch.bfloat16), values.bfloat16())


def test_vectors():
    for role, value in (("norm", 1.0), ("head_norm", 1.0), ("qkv_bias", 0.0), ("out_bias", 0.0)):
        param = Param("x.weight", (6,), role)
        assert part(param, Shard((6,), (Split(0, "tp"),)), 1, Mesh(tp=2)).tolist() == [value] * 3
    gated = Param("mixer.norm.weight", (6,), "per_head")
    assert part(gated, Shard((6,), (Split(0, "tp"),)), 1, Mesh(tp=2)).tolist() == [1.0] * 3


def test_what_adds_to_the_residual_stream_is_narrower():
    model = MODELS["dense"]
    assert initial_std(model, "qkv") == 0.1
    assert initial_std(model, "down") == initial_std(model, "out") == 0.1 / (2 * 4) ** 0.5
