"""What trains an indexer, judged by Megatron-core's own loss."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.experimental_attention_variant.dsa import compute_dsa_indexer_loss

from ridgeline.kernels.reference.lightning_indexer import lightning_indexer
from ridgeline.models.runtime import indexer_loss

ALONE = SimpleNamespace(size=lambda: 1)
SCALE = 0.4


@pytest.mark.parametrize("rows", [256, 4])
def test_loss_and_gradients_are_megatrons(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many queries are looked at together, of which the first see fewer positions than are chosen."""
    monkeypatch.setattr(indexer_loss, "ROWS", rows)
    generator = torch.Generator().manual_seed(5)
    b, s, n, latent, rope, heads, topk = 2, 11, 3, 6, 4, 9, 5
    query, keys, query_rope, key_rope, *index = (
        0.5 * torch.randn(shape, generator=generator)  # so that no share is near upstream's 1e-10
        for shape in (
            *((b, s, n, latent), (b, s, latent), (b, s, n, rope), (b, s, rope)),
            *((b, s, heads, 7), (b, s, 7), (b, s, heads)),
        )
    )

    ours = [x.clone().requires_grad_() for x in index]
    indices, scores = lightning_indexer(*ours, topk=topk)
    target = indexer_loss.attended(query, query_rope, keys, key_rope, indices, scale=SCALE)
    loss = indexer_loss.indexer_loss(scores, target) / (b * s)
    loss.backward()

    theirs = [x.clone().requires_grad_() for x in index]
    products = torch.einsum("bsnd,btd->bsnt", theirs[0], theirs[1]).relu()
    mask = torch.full((s, s), float("-inf")).triu(1)
    whole = (products * theirs[2].unsqueeze(-1)).sum(2) + mask
    truth = compute_dsa_indexer_loss(
        whole.clone(),
        whole.topk(topk, dim=-1).indices,
        torch.cat((query, query_rope), -1).transpose(0, 1),
        torch.cat((keys, key_rope), -1).transpose(0, 1).unsqueeze(2).expand(-1, -1, n, -1),
        SCALE,
        1.0,
        True,
        SimpleNamespace(tp=ALONE),  # pyright: ignore[reportArgumentType]
    )
    truth.backward()

    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)  # upstream's logarithms are of x + 1e-10
