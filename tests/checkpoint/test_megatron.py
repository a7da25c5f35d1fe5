"""Megatron-core's own checkpoint code puts tensors where we do, and loads what we save."""

from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest

from ridgeline.checkpoint.boxes import Shape
from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.checkpoint.optimizer_shards import optimizer_holders
from ridgeline.core.codec import dumps
from ridgeline.core.job import Job
from ridgeline.core.model import ModelSpec
from ridgeline.parallel.plan import plan
from tests.checkpoint.test_dist import DENSE, MOE, TIED, full, job, quick
from tests.checkpoint.training import (
    checkpoint_of,
    load_classic,
    load_in_megatron,
    megatron_boxes,
    uninterrupted,
    updated_boxes,
)
from tests.pool import Pool

LAYOUTS = {
    "tp2 pp2": job(TIED, 4, layout__tp=2, layout__pp=2),
    "ep2 tp2": job(MOE, 4, layout__ep=2, layout__tp=2, layout__sp=True),
}
LAYOUTS_FULL = {
    "one": job(DENSE, 1),
    "pp2 vpp2": job(DENSE, 2, layout__pp=2, layout__vpp=2),
    "etp2": job(MOE, 4, layout__tp=2, layout__etp=2, layout__sp=True),
    "pp2 ep2": job(MOE, 4, layout__pp=2, layout__ep=2),
}
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


@pytest.mark.parametrize("job", [*quick(LAYOUTS), *full(LAYOUTS_FULL)])
def test_tensors_lie_where_megatron_puts_them(ranks: Pool, job: Job) -> None:
    """Keys, shapes and boxes equal those of sharded_state_dict on every rank, padding of the vocabulary apart."""
    for rank in ranks.run(megatron_boxes, job.cluster.world_size, dumps(job)):
        ours, theirs = ({key: box for key, *box in map(tuple, rank[side]) if key in VOCABULARY} for side in rank)
        assert ours.keys() == theirs.keys()
        for key, (shape, offset, _) in ours.items():
            assert shape[0] == job.model.vocab_size <= theirs[key][0][0]
            assert (shape[1:], offset) == (theirs[key][0][1:], theirs[key][1])
        ours, theirs = ({entry for entry in map(tuple, rank[side]) if entry[0] not in VOCABULARY} for side in rank)
        assert ours == theirs


@pytest.mark.parametrize("job", [*quick(LAYOUTS), *full(LAYOUTS_FULL)])
def test_megatron_loads_what_we_save(ranks: Pool, tmp_path: Path, job: Job) -> None:
    """Under any layout Megatron-core loads a checkpoint's weights with its own strategies, equal to the last bit."""
    saved = job_of_one(job)
    ranks.run(uninterrupted, 1, dumps(saved), str(tmp_path), 1, 1)
    for differences in ranks.run(load_in_megatron, job.cluster.world_size, dumps(job), checkpoint_of(tmp_path, 1)):
        assert set(differences) == {0.0}


def job_of_one(of: Job) -> Job:
    """The same model on one rank."""
    return job(of.model, 1)


@pytest.mark.parametrize(
    ("model", "ep"), [(DENSE, 1), (TIED, 1), (MOE, 2), (MOE, 1)], ids=["dense", "tied", "ep2", "experts"]
)
def test_the_optimizer_is_sharded_as_planned(ranks: Pool, model: ModelSpec, ep: int) -> None:
    """On every rank Megatron-core's distributed optimizer updates the very elements that the plan gives it."""
    sharded = job(model, 4, layout__pp=2, layout__ep=ep)
    theirs = ranks.run(updated_boxes, 4, dumps(sharded))
    holders = optimizer_holders(plan(sharded))
    for rank in range(4):
        ours: dict[str, list[tuple[Shape, Shape]]] = {}
        for piece in (
            p for holder in holders if rank in holder.ranks for buffer in holder.buffers for p in buffer.pieces
        ):
            ours.setdefault(piece.key, []).append(piece.box)
        assert {key: elements(boxes) for key, boxes in ours.items()} == {
            key: elements(boxes) for key, boxes in theirs[rank].items()
        }


def elements(boxes: Iterable[tuple[Shape, Shape]]) -> Counter[tuple[int, ...]]:
    """Every element of boxes, however these are cut, and how often it is there."""
    return Counter(
        index
        for offset, shape in boxes
        for index in product(*(range(o, o + n) for o, n in zip(offset, shape, strict=True)))
    )


@pytest.mark.parametrize("job", [*quick(LAYOUTS), *full(LAYOUTS_FULL)])
def test_megatron_loads_the_classic_layout(ranks: Pool, tmp_path: Path, job: Job) -> None:
    """Each rank's modules take its file with every name and shape as it is, and hold what the checkpoint held."""
    ranks.run(uninterrupted, 1, dumps(job_of_one(job)), str(tmp_path), 1, 1)
    wanted = Wanted(format="classic", layout=job.layout, form=ClassicForm(dialect="megatron"))
    convert(plan_conversion(checkpoint_of(tmp_path, 1), wanted), tmp_path / "classic")
    arguments = dumps(job), checkpoint_of(tmp_path, 1), str(tmp_path / "classic")
    for differences in ranks.run(load_classic, job.cluster.world_size, *arguments):
        assert set(differences) == {0.0}
