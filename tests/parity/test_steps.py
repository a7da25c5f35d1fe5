"""What a step means: how losses are weighed, documents kept apart, precision kept, and when nothing is updated."""

import attrs
import numpy as np
import pytest

from tests.parity import on_ranks
from tests.parity.small import INDEXED, MLP, MODELS, MOE, job_of, layers_of, model_of
from tests.parity.wholes import different, whole_gradients


def test_loss_per_token_weighs_every_token_alike(ranks):
    """Over microbatches and dp ranks with different numbers of tokens."""
    (alone,) = ranks.run(on_ranks.train, 1, job_of(MODELS["dense"], objective__per_token=True))
    (by_hand,) = ranks.run(on_ranks.mean_losses, 1, job_of(MODELS["dense"]))
    assert alone.losses[0] == pytest.approx(by_hand["per token"], rel=1e-6)
    (by_microbatch,) = ranks.run(on_ranks.train, 1, job_of(MODELS["dense"]), 1)
    assert by_microbatch.losses[0] == pytest.approx(by_hand["per microbatch"], rel=1e-6)
    assert by_hand["per token"] != pytest.approx(by_hand["per microbatch"], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("dense", {}),
        ("dense", {"layout__pp": 2}),
        ("dense", {"layout__tp": 2}),
        ("moe", {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    ],
    ids=["dp2", "pp2", "tp2", "moe tp2 sp ep2"],
)
def test_loss_per_token_in_every_layout(ranks, model, fields):
    (alone,) = ranks.run(on_ranks.train, 1, job_of(MODELS[model], objective__per_token=True))
    results = ranks.run(on_ranks.train, 2, job_of(MODELS[model], world_size=2, objective__per_token=True, **fields))
    assert results[0].losses == pytest.approx(alone.losses, rel=1e-5)
    assert results[0].grad_norms == pytest.approx(alone.grad_norms, rel=1e-5)
    assert different(whole_gradients(r.gradients for r in results), whole_gradients([alone.gradients])) == {}


def test_experts_are_drawn_and_tokens_jittered_in_training_only(ranks):
    """An evaluation neither draws experts nor puts noise on tokens; a training step does both, the same every time."""
    still = attrs.evolve(MOE, score="sparsemixer", normalize_topk=False, nearness=0.4, sampled=False)
    others = {"drawn": attrs.evolve(still, sampled=True), "jittered": attrs.evolve(still, input_jitter=0.3)}

    def evaluated(moe):
        model = attrs.evolve(model_of(moe, moe), init_std=0.5)  # wide enough for experts to matter
        return ranks.run(on_ranks.evaluated, 1, job_of(model))[0]

    plain = evaluated(still)
    assert plain["eval"] == pytest.approx(plain["train"], rel=1e-6)
    for moe in others.values():
        once, again = evaluated(moe), evaluated(moe)
        assert once["eval"] == pytest.approx(plain["eval"], rel=1e-6)
        assert once["train"] != pytest.approx(plain["train"], rel=1e-5)
        assert once["train"] == again["train"]


def test_microbatches_add_up(ranks):
    """One microbatch of 8 samples, or 8 of one: the same gradient per token."""
    few, many = (
        ranks.run(on_ranks.train, 1, job_of(MODELS["tied"], objective__per_token=True, batch__mbs=mbs))[0]
        for mbs in (8, 1)
    )
    assert few.losses == pytest.approx(many.losses, rel=1e-5)
    assert few.grad_norms == pytest.approx(many.grad_norms, rel=1e-5)


LAYOUTS = {
    "alone": (1, {}),
    "tp2 sp": (2, {"layout__tp": 2, "layout__sp": True}),
    "pp2": (2, {"layout__pp": 2}),
}


PACKED = {
    "attention": model_of(*[MLP] * 4),
    "window": model_of(*[MLP] * 4, window=5),
    "mamba": MODELS["mamba"],
    "indexed": layers_of(*[(INDEXED, MLP)] * 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", PACKED)
def test_packed_documents_are_as_good_as_apart(ranks, layout, model):
    """Each document of a sample gets the logits it gets alone, and the sum of the gradients is that of all alone."""
    world_size, fields = LAYOUTS[layout]
    model = PACKED[model]
    lengths, packed_fields = ((9, 15), (1, 20, 3)), {"batch__gbs": 2, "objective__indexer_loss": 0.0}
    packed = ranks.run(
        on_ranks.packed, world_size, job_of(model, world_size=world_size, **packed_fields, **fields), lengths
    )
    (apart,) = ranks.run(on_ranks.apart, 1, job_of(model, **packed_fields), lengths)
    for logits in [logits for result in packed for logits in result.logits]:
        begin = 0
        for document, expected in enumerate(apart.logits):
            ours = logits.reshape(-1, logits.shape[-1])[begin : begin + len(expected)]
            begin += len(expected)
            assert np.linalg.norm(ours - expected) < 1e-5 * np.linalg.norm(expected), document
    ours = whole_gradients(result.gradients for result in packed)
    assert different(ours, whole_gradients([apart.gradients])) == {}


def test_heads_that_change_places_keep_their_slopes(ranks):
    """ALiBi's slopes and a soft cap go with the heads, under tp too."""
    model = model_of(*[MLP] * 2, positions="alibi", softcap=3.0, qk_norm=False)
    fields = {"layout__cp": 2, "layout__cp_algorithm": "ulysses", "layout__tp": 2}
    (alone,) = ranks.run(on_ranks.train, 1, job_of(model), 2)
    shared = ranks.run(on_ranks.train, 4, job_of(model, world_size=4, **fields), 2)
    assert shared[0].losses == pytest.approx(alone.losses, rel=1e-5)
    ours = whole_gradients(result.gradients for result in shared)
    assert different(ours, whole_gradients([alone.gradients])) == {}


def test_packed_documents_of_shared_samples(ranks):
    """Where heads change places, documents that cp ranks share give the loss and the gradients that all alone give."""
    lengths, fields = ((9, 15), (1, 20, 3)), {"batch__gbs": 2, "layout__cp": 2, "layout__cp_algorithm": "ulysses"}
    shared = ranks.run(on_ranks.packed, 2, job_of(PACKED["window"], world_size=2, **fields), lengths)
    (apart,) = ranks.run(on_ranks.apart, 1, job_of(PACKED["window"], batch__gbs=2), lengths)
    assert [result.loss for result in shared] == [pytest.approx(apart.loss, rel=1e-5)] * 2
    ours = whole_gradients(result.gradients for result in shared)
    assert different(ours, whole_gradients([apart.gradients])) == {}


@pytest.mark.parametrize("model", ["tied", "moe", "mamba"])
def test_bf16_learns(ranks, model):
    """Weights and activations in bf16, masters and gradients in fp32: the loss falls, at first as in fp32."""
    fields = {"optimizer__lr": 1e-2, "memory__distributed_optimizer": True, "layout__pp": 2}
    job = job_of(MODELS[model], world_size=2, precision="bf16", **fields)
    results = ranks.run(on_ranks.train_on_one_batch, 2, job, 10)
    exact = ranks.run(on_ranks.train_on_one_batch, 2, job_of(MODELS[model], world_size=2, **fields), 3)
    losses = results[0].losses
    assert np.isfinite([*losses, *results[0].grad_norms]).all()
    assert losses[-1] < 0.8 * losses[0]
    assert losses[:3] == pytest.approx(exact[0].losses[:3], rel=0.01)


def test_a_gradient_that_is_not_finite_changes_nothing(ranks):
    """Every rank skips the update, and the next step goes on from the weights that were."""
    for result in ranks.run(on_ranks.skipped, 2, job_of(MODELS["dense"], world_size=2, layout__tp=2)):
        assert result["skipped"] == [False, True, False]
        assert not np.isfinite(result["grad_norm"][1])
        assert result["changed"] == [True, False, True]


def test_biases_and_norms_do_not_decay(ranks):
    """Without gradients only matrices shrink, by lr * weight_decay."""
    job = job_of(MODELS["mixed"], optimizer__weight_decay=0.5, optimizer__lr=0.1)
    (ratios,) = ranks.run(on_ranks.decayed, 1, job)
    assert {role for role, _ in ratios} == {
        "embedding", "norm", "head_norm", "qkv", "qkv_bias", "out", "gate_up", "down", "router",
    }  # fmt: skip
    for role, ratio in ratios:
        expected = 1.0 if role in ("norm", "head_norm", "qkv_bias") else 1.0 - 0.1 * 0.5
        assert ratio == pytest.approx(expected, abs=1e-5), role


def test_a_process_builds_one_model_after_another(ranks):
    """What Megatron-core remembers of the first, which has fewer layers, does not disturb the second."""
    first, second = (job_of(model_of(*[MOE] * layers)) for layers in (1, 3))
    ((_, after_another),) = ranks.run(on_ranks.train_each, 1, (first, second))
    ((alone,),) = ranks.run(on_ranks.train_each, 1, (second,))
    assert after_another == alone


def test_evaluation_tells_the_loss_and_changes_nothing(ranks):
    for fields in ({}, {"layout__pp": 2, "layout__vpp": 2}, {"layout__cp": 2}):
        for result in ranks.run(on_ranks.evaluated, 2, job_of(MODELS["tied"], world_size=2, **fields)):
            assert result["eval"] == pytest.approx(result["train"], rel=1e-6)
            assert result["training"]
            assert result["unchanged"]
