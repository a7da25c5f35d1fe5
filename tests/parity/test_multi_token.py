"""Multi-token prediction is what DeepSeek-V3's paper says, and leaves the model it hangs on as it was."""

import attrs
import numpy as np
import pytest
import torch

from ridgeline.core.model import Attention, Block, Mlp
from tests.parity import multi_token
from tests.parity.on_ranks import documents
from tests.parity.small import job_of, layers_of
from tests.parity.wholes import different, whole_gradients

PLAIN = layers_of(*[(Attention(heads=4, kv_heads=2, head_dim=10), Mlp(ffn_hidden=52))] * 2, mtp=2)
OF_ITS_OWN = attrs.evolve(
    PLAIN,
    mtp_before_norm=True,
    mtp_block=Block(mixer=Attention(heads=6, kv_heads=2, head_dim=8), feed_forward=Mlp(ffn_hidden=52)),
)
MODELS = {"like the last": PLAIN, "of its own, before norms": OF_ITS_OWN}
LENGTHS = ((9, 15), (1, 20, 3))
LAYOUTS = {
    "alone": (1, {}),
    "tp2 sp": (2, {"layout__tp": 2, "layout__sp": True}),
    "pp2": (2, {"layout__pp": 2}),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [*(("like the last", layout) for layout in LAYOUTS), ("of its own, before norms", "tp2 sp")],
)
def test_losses_and_gradients_are_those_of_the_paper(ranks, name, layout):
    """Of documents packed in samples: each document alone, summed, over the tokens of the main loss."""
    model, (world_size, fields) = MODELS[name], LAYOUTS[layout]
    fields = {"batch__gbs": 2, "objective__mtp_loss": 0.3, **fields}
    results = ranks.run(
        multi_token.compute_masked, world_size, job_of(model, world_size=world_size, **fields), LENGTHS, 0
    )
    (held,) = ranks.run(multi_token.weights_of, 1, job_of(model, batch__gbs=2))
    weights = {name: tensor.requires_grad_() for name, tensor in held.items()}
    texts = documents(LENGTHS, model.vocab_size)
    by_document = [multi_token.losses_of(model, weights, tokens, labels) for tokens, labels in texts if len(tokens) > 2]
    tokens, labels = next(text for text in texts if len(text[0]) == 1)  # too short to look ahead
    alone = multi_token.losses_of(attrs.evolve(PLAIN, mtp=0), weights, tokens, labels)
    count = sum(map(sum, LENGTHS))
    main, *further = (torch.stack(losses).sum() / count for losses in zip(*by_document, strict=True))
    main = main + alone[0] / count
    (main + 0.3 / 2 * sum(further)).backward()
    computed, mtp_losses = results[0]
    assert computed.loss == pytest.approx(main.item(), rel=1e-5)
    assert mtp_losses == pytest.approx([loss.item() for loss in further], rel=1e-5)
    truth = {name: tensor.grad.numpy() for name, tensor in weights.items()}
    assert different(whole_gradients(result.gradients for result, _ in results), truth) == {}


@pytest.mark.parametrize("name", MODELS)
def test_the_main_model_stays_as_it_is(ranks, name):
    """The same logits and loss without it; with a weight of 0, the same gradients."""
    fields, model = {"batch__gbs": 2, "objective__mtp_loss": 0.0}, MODELS[name]
    ((ours, _),) = ranks.run(multi_token.compute_masked, 1, job_of(model, **fields), LENGTHS, 4)
    without = attrs.evolve(model, mtp=0)
    ((truth, none),) = ranks.run(multi_token.compute_masked, 1, job_of(without, **fields), LENGTHS, 4)
    assert none == ()
    assert ours.loss == truth.loss
    assert all(np.array_equal(a, b) for a, b in zip(ours.logits, truth.logits, strict=True))
    gradients = whole_gradients([ours.gradients])
    assert different({k: v for k, v in gradients.items() if "mtp." not in k}, whole_gradients([truth.gradients])) == {}
    assert not any(np.any(gradient) for name, gradient in gradients.items() if "mtp." in name)


def test_a_label_without_loss_has_none_at_any_depth(ranks):
    """A mask goes with its label: the first tokens of a document masked, only predictions of later ones count."""
    (_, mtp_losses), *_ = ranks.run(multi_token.compute_masked, 1, job_of(PLAIN, batch__gbs=2), LENGTHS, 9)
    (held,) = ranks.run(multi_token.weights_of, 1, job_of(PLAIN, batch__gbs=2))
    texts = [text for text in documents(LENGTHS, PLAIN.vocab_size)[1:] if len(text[0]) > 2]
    with torch.no_grad():
        by_document = [multi_token.losses_of(PLAIN, held, *text) for text in texts]
    sums = [torch.stack(losses).sum().item() for losses in zip(*by_document, strict=True)]
    count = sum(map(sum, LENGTHS)) - 9
    assert mtp_losses == pytest.approx([total / count for total in sums[1:]], rel=1e-5)
