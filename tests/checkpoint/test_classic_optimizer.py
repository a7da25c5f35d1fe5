"""The optimizer's state in the classic layout, judged by Megatron-core's own optimizers."""

from collections import OrderedDict
from pathlib import Path

import attrs
import pytest
import torch

from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.classic_optimizer import check_ordered
from ridgeline.checkpoint.io.classic_training import read_optimizer
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.checkpoint.io.torch_file import read_torch_file
from ridgeline.core.codec import dumps
from ridgeline.core.errors import CheckpointError, PlanError
from ridgeline.core.job import Job
from tests.checkpoint.megatron_optimizers import differences, megatron_loads, megatron_saves
from tests.checkpoint.test_dist import BF16, DENSE, MOE, PLAIN, full, job, quick
from tests.checkpoint.training import checkpoint_of, uninterrupted
from tests.pool import Pool

EVEN = attrs.evolve(DENSE, vocab_size=256)  # no rows to round up
EVEN_MOE = attrs.evolve(MOE, vocab_size=256)
MEGATRON = ClassicForm(dialect="megatron")
JOBS = {
    "tp2 pp2, bf16": job(EVEN, 4, layout__tp=2, layout__pp=2, **PLAIN, **BF16),
    "ep2 tp2, bf16": job(EVEN_MOE, 4, layout__ep=2, layout__tp=2, layout__sp=True, **PLAIN, **BF16),
}
JOBS_FULL = {
    "one": job(EVEN, 1, **PLAIN),
    "pp2 vpp2, bf16": job(EVEN, 2, layout__pp=2, layout__vpp=2, **PLAIN, **BF16),
    "ep2 pp2": job(EVEN_MOE, 4, layout__ep=2, layout__pp=2, **PLAIN),
}


def trained(ranks: Pool, folder: Path, of: Job) -> str:
    """A checkpoint after two steps of the same model on one rank."""
    one = job(of.model, 1, precision__params=of.precision.params)
    ranks.run(uninterrupted, 1, dumps(one), str(folder), 2, 2)
    return checkpoint_of(folder, 2)


@pytest.mark.parametrize("job", [*quick(JOBS), *full(JOBS_FULL)])
def test_state_goes_to_megatron_and_back(ranks: Pool, tmp_path: Path, job: Job) -> None:
    """Each rank's optimizer loads what is written, what it saves is read, and no bit of either differs."""
    folder, world_size = trained(ranks, tmp_path, job), job.cluster.world_size
    wanted = Wanted(format="classic", layout=job.layout, form=MEGATRON, optimizer=True)
    convert(plan_conversion(folder, wanted), tmp_path / "classic")
    for loaded in ranks.run(megatron_loads, world_size, dumps(job), folder, str(tmp_path / "classic")):
        assert list(loaded) == [[], 2 * job.batch.gbs, job.optimizer.lr]
    ranks.run(megatron_saves, world_size, dumps(job), folder, str(tmp_path / "theirs"))
    wanted = Wanted(format="torch_dist", optimizer=True)
    for source in ("classic", "theirs"):
        back = tmp_path / f"back from {source}"
        convert(plan_conversion(tmp_path / source, wanted, model=job.model), back)
        assert ranks.run(differences, world_size, dumps(job), folder, str(back)) == [[]] * world_size, source


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Wanted(format="hf", optimizer=True), r"format='hf' holds weights alone; use --format torch_dist or classic"),
        (Wanted(format="torch_dist", dtype="bf16", optimizer=True), r"dtype='bf16': changes weights under"),
    ],
)
def test_what_cannot_go_along_is_refused(tmp_path: Path, wanted: Wanted, told: str) -> None:
    """A format that has no room for the state, and a change of what the state belongs to."""
    with pytest.raises(CheckpointError, match=told):
        plan_conversion(tmp_path, wanted)


def test_unknown_orders_are_refused() -> None:
    """Where it is not known how the loading modules number parameters, no state is written, and why is said."""
    form = ClassicForm(impl="te", tp_extend_ep=True)
    with pytest.raises(PlanError, match=r"impl='te'.*\n.*tp_extend_ep=True.*\n.*has mtp\.layers\.0\."):
        check_ordered(attrs.evolve(EVEN, mtp=1), form)
    check_ordered(EVEN, MEGATRON)
    check_ordered(EVEN_MOE, MEGATRON)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (None, "holds no optimizer's state"),
        ({"optimizer": {"param_groups": []}}, "distributed optimizer's state in distrib_optim.pt, which is not read"),
        ({"state": {}, "param_groups": [{"params": [0], "wd_mult": 1.0}]}, "has 1 parameters where the model has 0"),
    ],
)
def test_files_without_such_state_are_refused(optimizer: object, told: str) -> None:
    """What the file lacks or keeps elsewhere is named, with the way out."""
    with pytest.raises(CheckpointError, match=told):
        read_optimizer(Path("model_optim_rng.pt"), {"model": {}, "optimizer": optimizer}, (), ep=1)


class Disguised:
    """Pickles as a tensor with attributes, which another call than a tensor's is to make."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch._tensor._rebuild_from_type_v2, (OrderedDict, torch.Tensor, (), {})


def test_tensors_with_attributes_are_read_without_them(tmp_path: Path) -> None:
    """As Megatron-core marks its masters; where anything but a tensor is to be made that way, the file is refused."""
    marked = torch.arange(6.0).reshape(2, 3)
    marked.tensor_model_parallel = True  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark
    torch.save({"marked": marked}, tmp_path / "good.pt")
    read = read_torch_file(tmp_path / "good.pt", tmp_path)["marked"]
    assert torch.equal(read.strided(0, (2, 3), (3, 1)), marked)
    torch.save({"marked": Disguised()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"asks for a tensor made by .*OrderedDict.*: refused"):
        read_torch_file(tmp_path / "bad.pt", tmp_path)
