"""The model graph as a run-length list."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.codec import digest
from ridgeline.core.errors import SpecError
from ridgeline.core.model import ModelSpec, Moe, Repeat
from tests.strategies import attention_models


@given(attention_models(), st.data())
@settings(max_examples=50, deadline=None)
def test_runs_are_merged_however_they_are_cut(model, data):
    """Cutting runs into shorter ones gives an equal model with an equal digest."""
    pieces = []
    for run in model.blocks:
        first = data.draw(st.integers(0, run.count))
        pieces += [Repeat(block=run.block, count=count) for count in (first, run.count - first) if count]
    again = attrs.evolve(model, blocks=pieces)
    assert again == model
    assert digest(again) == digest(model)


@given(attention_models())
@settings(max_examples=50, deadline=None)
def test_layers_spell_the_runs_out(model):
    """Every block, in order; and no two neighbouring runs are equal."""
    layers = model.layers()
    assert len(layers) == model.num_layers
    assert attrs.evolve(model, blocks=tuple(Repeat(block=block, count=1) for block in layers)) == model
    assert all(left.block != right.block for left, right in zip(model.blocks, model.blocks[1:], strict=False))
    assert isinstance(model, ModelSpec)


def test_what_sparsemixer_does_by_itself_is_said_so():
    """It takes two experts, weighs and ranks them alone, and needs to be told how near the best counts."""
    with pytest.raises(SpecError) as caught:
        Moe(experts=8, topk=3, ffn_hidden=4, score="sparsemixer", expert_bias=True, groups=2)
    assert str(caught.value).splitlines() == [
        "topk=3: must be 2 with score='sparsemixer'",
        "normalize_topk=True: must be False with score='sparsemixer'",
        "groups=2: must be 1 with score='sparsemixer'",
        "expert_bias=True: must be False with score='sparsemixer'",
        "nearness=0.0: must be > 0 with score='sparsemixer'; Phi-3.5-MoE has 0.01",
    ]
