"""Documents of a sample kept apart: Megatron-core's dense mask and positions are the judge of boundaries."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.apps.runtime.data.packing import assemble, document_boundaries, restarted_positions
from ridgeline.core.errors import DataError
from ridgeline.kernels.reference.attention import attention

gpt_dataset = pytest.importorskip("megatron.core.datasets.gpt_dataset")

EOD = 0
ROWS = st.integers(1, 24).flatmap(
    lambda s: st.lists(st.lists(st.sampled_from([EOD, 5, 6, 7]), min_size=s, max_size=s), min_size=1, max_size=3)
)


def sample(row: list[int]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor(row)
    return {"tokens": tokens, "labels": tokens.roll(-1), "loss_mask": torch.ones(len(row))}


@given(rows=ROWS)
@settings(deadline=None)
def test_boundaries_positions_and_loss_mask_are_megatrons(rows: list[list[int]]) -> None:
    """For any tokens: the mask that the boundaries stand for, the positions and the loss mask equal Megatron's."""
    batch = assemble([sample(row) for row in rows], packing="eod_reset", eod=EOD)
    assert batch.cu_seqlens is not None
    s = len(rows[0])
    document = torch.bucketize(torch.arange(len(rows) * s), batch.cu_seqlens[1:], right=True).view(len(rows), s)
    for i, row in enumerate(rows):
        masked, loss_mask, positions = gpt_dataset._get_ltor_masks_and_position_ids(
            torch.tensor(row), EOD, True, True, True, True
        )
        causal = torch.ones(s, s).tril().bool()
        assert torch.equal(~masked[0], causal & (document[i][:, None] == document[i][None, :]))
        assert torch.equal(batch.loss_mask[i], loss_mask)
        assert torch.equal(batch.position_ids[i], positions)


@given(rows=ROWS)
@settings(deadline=None)
def test_boundaries_part_the_tokens(rows: list[list[int]]) -> None:
    """Boundaries rise from 0 to the number of tokens: the ends of all samples and of all documents, and no others."""
    tokens = torch.tensor(rows)
    boundaries = document_boundaries(tokens, EOD).tolist()
    assert boundaries == sorted(set(boundaries))
    assert (boundaries[0], boundaries[-1]) == (0, tokens.numel())
    ends = {i + 1 for i, token in enumerate(tokens.flatten().tolist()) if token == EOD}
    assert set(boundaries[1:]) == ends | {len(rows[0]) * (i + 1) for i in range(len(rows))}


@given(rows=ROWS)
@settings(deadline=None)
def test_positions_are_distances_to_boundaries(rows: list[list[int]]) -> None:
    """Positions and boundaries tell the same: each counts from the boundary before it."""
    tokens = torch.tensor(rows)
    boundaries = document_boundaries(tokens, EOD).tolist()
    expected = [i for begin, end in pairwise(boundaries) for i in range(end - begin)]
    assert restarted_positions(tokens, EOD).flatten().tolist() == expected


def test_the_picture_of_the_module() -> None:
    """The drawing at the top of packing.py."""
    batch = assemble([sample([7, 8, EOD, 9, EOD, 4])], packing="eod_reset", eod=EOD)
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.loss_mask.tolist() == [[1, 1, 0, 1, 0, 1]]


def test_without_packing_a_sample_is_one_whole() -> None:
    """Positions run through, every label counts, and no boundary travels."""
    batch = assemble([sample([7, EOD, 9]), sample([1, 2, 3])], packing="none", eod=EOD)
    assert batch.cu_seqlens is None
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.loss_mask.sum() == 6
    assert batch.labels.tolist() == [[EOD, 9, 7], [2, 3, 1]]


def test_padding_stays_out_of_the_loss() -> None:
    """A mask that the dataset brings is kept."""
    padded = sample([7, 8, EOD, 9]) | {"loss_mask": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    assert assemble([padded], packing="eod_reset", eod=EOD).loss_mask.tolist() == [[1, 1, 0, 0]]


def test_an_id_the_model_does_not_know_is_named() -> None:
    """Labels count as well as tokens."""
    assemble([sample([7, 8])], packing="none", eod=EOD, vocab_size=9)
    with pytest.raises(DataError, match=r"the data holds the token id 8, but model\.vocab_size=8 has ids below 8 only"):
        assemble([sample([7, 8])], packing="none", eod=EOD, vocab_size=8)


@given(rows=ROWS, seed=st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_no_gradient_crosses_a_boundary(rows: list[list[int]], seed: int) -> None:
    """What attention gives a document, cut at the boundaries of the microbatch, depends on that document alone."""
    torch.manual_seed(seed)
    batch = assemble([sample(row) for row in rows], packing="eod_reset", eod=EOD)
    assert batch.cu_seqlens is not None
    x_bsnd = torch.randn(*batch.tokens.shape, 2, 4, requires_grad=True)
    x_sbnd = x_bsnd.transpose(0, 1)
    out_sbnd = attention(x_sbnd, x_sbnd, x_sbnd, scale=0.5, cu_seqlens=batch.cu_seqlens)
    out_td = out_sbnd.transpose(0, 1).flatten(0, 1)
    for begin, end in pairwise(batch.cu_seqlens.tolist()):
        (gradient,) = torch.autograd.grad(out_td[begin:end].sum(), x_bsnd, retain_graph=True)
        reached = gradient.flatten(0, 1).abs().sum(dim=(1, 2)).nonzero().flatten().tolist()
        assert reached == list(range(begin, end))
