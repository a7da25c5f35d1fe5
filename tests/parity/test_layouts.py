"""A layout changes nothing: losses, gradient norms and every gradient equal those of one rank."""

import functools

import pytest

from tests.parity.on_ranks import Trained, train
from tests.parity.small import MODELS, job_of
from tests.parity.wholes import different, whole_gradients

EXPERTS_OVER_TP = {"layout__tp": 2, "layout__sp": True, "layout__etp": 2}
ULYSSES = {"layout__cp": 2, "layout__cp_algorithm": "ulysses"}
LAYOUTS = {
    "tp2": (2, {"layout__tp": 2}),
    "tp2 sp": (2, {"layout__tp": 2, "layout__sp": True}),
    "pp2": (2, {"layout__pp": 2}),
    "pp2 vpp2": (2, {"layout__pp": 2, "layout__vpp": 2}),
    "dp2": (2, {}),
    "dp2 distributed optimizer": (2, {"memory__distributed_optimizer": True}),
    "dp2 overlapped": (
        2,
        {
            "memory__distributed_optimizer": True,
            "comm__overlap_grad_reduce": True,
            "comm__overlap_param_gather": True,
        },
    ),
    "uneven": (2, {"layout__pp": 2, "layout__stages": (1, 3)}),
    "uneven vpp2": (2, {"layout__pp": 2, "layout__vpp": 2, "layout__stages": (0, 1, 3, 0)}),
    "noop": (2, {"layout__pp": 2, "layout__vpp": 2, "layout__noop_layers": (0, 3, 5, 7)}),
    "pp4": (4, {"layout__pp": 4}),
    "pp2 gpipe": (2, {"layout__pp": 2, "layout__schedule": "gpipe"}),
    "pp2 zb_h1": (2, {"layout__pp": 2, "layout__schedule": "zb_h1"}),
    "pp2 zb_2p": (2, {"layout__pp": 2, "layout__schedule": "zb_2p"}),
    "pp2 zb_v": (2, {"layout__pp": 2, "layout__schedule": "zb_v"}),
    "pp2 zb_vpp": (2, {"layout__pp": 2, "layout__vpp": 2, "layout__schedule": "zb_vpp"}),
    "pp2 dualpipe_v": (2, {"layout__pp": 2, "layout__schedule": "dualpipe_v"}),
    "pp2 dualpipe_v_split": (2, {"layout__pp": 2, "layout__schedule": "dualpipe_v_split"}),
    "tp2 sp pp2 zb_v": (
        4,
        {"layout__tp": 2, "layout__sp": True, "layout__pp": 2, "layout__schedule": "zb_v"},
    ),
    "dp2 pp2 zb_h1 overlapped": (
        4,
        {
            "layout__pp": 2,
            "layout__schedule": "zb_h1",
            "memory__distributed_optimizer": True,
            "comm__overlap_grad_reduce": True,
            "comm__overlap_param_gather": True,
        },
    ),
    "tp2 pp2": (4, {"layout__tp": 2, "layout__pp": 2}),
    "tp2 pp2 sp vpp2": (4, {"layout__tp": 2, "layout__pp": 2, "layout__sp": True, "layout__vpp": 2, "batch__gbs": 16}),
    "ep2 alltoall": (2, {"layout__ep": 2}),
    "ep2 allgather": (2, {"layout__ep": 2, "comm__moe_dispatcher": "allgather"}),
    "ep2 distributed optimizer": (2, {"layout__ep": 2, "memory__distributed_optimizer": True}),
    "tp2 sp ep2": (2, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    "tp2 sp etp2": (2, {"layout__tp": 2, "layout__sp": True, "layout__etp": 2}),
    "tp2 sp ep2 etp2": (4, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2, "layout__etp": 2}),
    "tp2 sp ep2 dp2": (4, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    "ep2 alltoall, weight gradients beside": (2, {"layout__ep": 2, "comm__moe_overlap": ("weight_gradients",)}),
    "ep2 alltoall, shared beside": (2, {"layout__ep": 2, "comm__moe_overlap": ("shared_experts",)}),
    "ep2 allgather, all beside": (
        2,
        {
            "layout__ep": 2,
            "comm__moe_dispatcher": "allgather",
            "comm__moe_overlap": ("permutation", "shared_experts"),
        },
    ),
    "tp2 sp ep2 allgather": (
        2,
        {"layout__tp": 2, "layout__sp": True, "layout__ep": 2, "comm__moe_dispatcher": "allgather"},
    ),
    "tp2 sp etp2 allgather": (2, {**EXPERTS_OVER_TP, "comm__moe_dispatcher": "allgather"}),
    "tp2 sp etp2 columns": (2, {**EXPERTS_OVER_TP, "comm__moe_dispatcher": "alltoall_seq"}),
    "tp2 sp ep2 etp2 columns, shared beside": (
        4,
        {
            **EXPERTS_OVER_TP,
            "layout__ep": 2,
            "comm__moe_dispatcher": "alltoall_seq",
            "comm__moe_overlap": ("shared_experts",),
        },
    ),
    "cp2 ulysses": (2, ULYSSES),
    "cp4 ulysses": (4, {**ULYSSES, "layout__cp": 4}),
    "tp2 sp cp2 ulysses": (4, {**ULYSSES, "layout__tp": 2, "layout__sp": True}),
    "pp2 cp2 ulysses": (4, {**ULYSSES, "layout__pp": 2}),
    "cp2 ring": (2, {"layout__cp": 2}),
    "cp4 ring": (4, {"layout__cp": 4}),
    "cp2 ring dp2 distributed optimizer": (4, {"layout__cp": 2, "memory__distributed_optimizer": True}),
    "tp2 sp cp2 ring": (4, {"layout__cp": 2, "layout__tp": 2, "layout__sp": True}),
    "pp2 cp2 ring": (4, {"layout__cp": 2, "layout__pp": 2}),
    "cp4 hybrid": (4, {"layout__cp": 4, "layout__cp_algorithm": "hybrid", "layout__ulysses": 2}),
}
EXPERTS_ONLY = {name for name in LAYOUTS if "ep2" in name or "etp2" in name}
NEEDS_SP = {"tp2", "tp2 pp2"}
"""Megatron-core refuses to train experts with tp and without sp."""

DENSE = ("dense", "tied", "tied ahead", "mamba", "head gates")

SPLITS_PAIRS = {name for name in LAYOUTS if "vpp" in name or "_v" in name or name in ("uneven", "noop", "pp4")}

ALIKE = ("pp2 zb_2p", "pp2 dualpipe_v", "pp2 cp2 ulysses")
"""Those that differ little from others; the order of a schedule's actions is for tests of the executor."""

SHARES_SAMPLES = {name for name in LAYOUTS if "cp" in name}
WHOLE_SAMPLES = ("delta", "mamba", "indexed", "shared indexers", "ahead", "tied ahead")
"""Models that the runtime refuses to train with cp."""
WINDOWED = ("head gates", "bounded")
"""Keys that go round a ring do not follow a window."""

EVERY_DAY = {
    *(("dense", name) for name in LAYOUTS if name not in EXPERTS_ONLY and name not in ALIKE),
    *(("latent", name) for name in ("cp2 ring", "cp4 hybrid")),
    *(("moe", name) for name in ("cp2 ulysses", "tp2 sp cp2 ring")),
    ("shared kv", "cp2 ring"),
    ("biased experts", "cp2 ulysses"),
    *(("tied", "pp2 zb_v"), ("moe", "pp2 zb_h1"), ("mamba", "pp2 zb_v"), ("shared", "pp2 dualpipe_v_split")),
    *(("tied", name) for name in ("tp2", "pp2 vpp2", "tp2 pp2")),
    *(("shared" if "beside" in name else "moe", name) for name in ("pp2", *EXPERTS_ONLY)),
    *(("biased experts", name) for name in ("tp2 sp etp2", "tp2 sp ep2")),
    ("mixed", "pp2 vpp2"),
    *(("latent", name) for name in ("tp2 sp", "pp2", "ep2 alltoall")),
    *(("indexed", name) for name in ("tp2 sp", "pp2")),
    ("shared indexers", "tp2 sp"),
    *(("shortcut", name) for name in ("ep2 alltoall", "ep2 allgather")),
    ("delta", "tp2 sp"),
    *(("ahead", name) for name in ("tp2 sp", "pp2 vpp2")),
    ("tied ahead", "tp2 pp2"),
    *(("head gates", name) for name in ("tp2", "tp2 sp", "pp2 vpp2")),
    ("bounded", "tp2 sp ep2"),
    *(("mamba", name) for name in ("tp2 sp", "pp2 vpp2")),
}
CASES = [
    pytest.param(model, layout, id=f"{model}: {layout}", marks=() if (model, layout) in EVERY_DAY else pytest.mark.full)
    for model in MODELS
    for layout in LAYOUTS
    if not (layout in EXPERTS_ONLY and model in DENSE)
    if not (layout.endswith(("zb_v", "dualpipe_v", "dualpipe_v_split")) and model in ("ahead", "tied ahead"))
    if not (layout in SPLITS_PAIRS and model in ("shortcut", "shared kv", "shared indexers"))
    if not (layout in SHARES_SAMPLES and model in WHOLE_SAMPLES)
    if not (layout in SHARES_SAMPLES and model == "biased experts" and "ulysses" not in layout)  # sinks
    if not (model in WINDOWED and ("ring" in layout or "hybrid" in layout))
    if not (layout in NEEDS_SP and model not in DENSE)
]


@pytest.fixture(scope="module")
def alone(ranks):
    """What one rank makes of a model and a batch."""

    @functools.cache
    def train_alone(model: str, gbs: int) -> Trained:
        return ranks.run(train, 1, job_of(MODELS[model], batch__gbs=gbs))[0]

    return train_alone


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_layout(ranks, alone, model, layout):
    world_size, fields = LAYOUTS[layout]
    job = job_of(MODELS[model], world_size=world_size, **fields)
    results = ranks.run(train, world_size, job)
    truth = alone(model, job.batch.gbs)
    assert len({str(result.losses) for result in results}) == 1, "every rank is told the same losses"
    assert results[0].losses == pytest.approx(truth.losses, rel=1e-5)
    assert results[0].grad_norms == pytest.approx(truth.grad_norms, rel=1e-5)
    assert results[0].tokens == truth.tokens
    ours = whole_gradients(result.gradients for result in results)
    assert different(ours, whole_gradients([truth.gradients])) == {}
