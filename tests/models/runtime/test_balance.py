"""Balance losses as DeepSeek-V2's equations say them, in numpy's float64, in every layout of the tokens."""

import attrs
import numpy as np
import pytest
import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import distributed

from ridgeline.core.model import Moe
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import build
from ridgeline.models.runtime.router import ExpertRouter
from ridgeline.models.runtime.step import accumulate, train_step
from ridgeline.parallel.plan import plan
from tests.models.runtime.test_routing import by_hand
from tests.parity.on_ranks import microbatches
from tests.parity.small import HIDDEN, job_of, model_of

BASE = Moe(experts=6, topk=2, ffn_hidden=28)
GROUPED = attrs.evolve(BASE, groups=3, group_topk=2, group_score="max", normalize_topk=False, topk_scale=1.5)
LOSSES = {
    "none": BASE,
    "expert": attrs.evolve(BASE, aux_loss=0.3),
    "expert, by sequence": attrs.evolve(BASE, aux_loss=0.3, aux_per_sequence=True),
    "z": attrs.evolve(BASE, z_loss=0.2),
    "device": attrs.evolve(GROUPED, device_aux_loss=0.3),
    "communication": attrs.evolve(GROUPED, comm_aux_loss=0.3),
    "all, by sequence": attrs.evolve(
        GROUPED, aux_loss=0.1, device_aux_loss=0.3, comm_aux_loss=0.2, z_loss=0.05, aux_per_sequence=True
    ),
    "sigmoid with a bias": attrs.evolve(BASE, aux_loss=0.3, score="sigmoid", expert_bias=True),
}
LAYOUTS = {
    "alone": (1, {}),
    "tp2 sp": (2, {"layout__tp": 2, "layout__sp": True}),
    "ep2": (2, {"layout__ep": 2}),
    "tp2 sp per token": (2, {"layout__tp": 2, "layout__sp": True, "objective__per_token": True}),
}
SEQ, SAMPLES = 10, 3


def equations(logits_sbe: np.ndarray, moe: Moe) -> float:
    """The losses of (s, b, e) logits, by the equations, an expert and a device at a time."""
    windows = [logits_sbe[:, b] for b in range(logits_sbe.shape[1])]
    if not moe.aux_per_sequence:
        windows = [np.concatenate(windows)]
    total = 0.0
    for window in windows:
        tokens, experts = window.shape
        scores = np.exp(window) / np.exp(window).sum(1, keepdims=True)
        if moe.score == "sigmoid":
            scores = 1 / (1 + np.exp(-window))
            scores = scores / scores.sum(1, keepdims=True)
        chosen = by_hand(window, moe, None) > 0
        f = [experts / (moe.topk * tokens) * chosen[:, i].sum() for i in range(experts)]  # eq. 24
        p = [scores[:, i].sum() / tokens for i in range(experts)]  # eq. 25
        total += moe.aux_loss * sum(a * b for a, b in zip(f, p, strict=True))  # eq. 23
        size = experts // moe.groups
        for device in range(moe.groups):
            inside = range(device * size, (device + 1) * size)
            f_device = sum(f[i] for i in inside) / size  # eq. 27
            p_device = sum(p[i] for i in inside)  # eq. 28, 31
            sent = sum(any(chosen[t, i] for i in inside) for t in range(tokens))
            f_sent = moe.groups / (moe.group_topk * tokens) * sent  # eq. 30
            total += moe.device_aux_loss * f_device * p_device  # eq. 26
            total += moe.comm_aux_loss * f_sent * p_device  # eq. 29
    z = np.log(np.exp(logits_sbe).sum(-1)) ** 2
    return total / len(windows) + moe.z_loss * z.mean()


def routed(job) -> list[dict]:
    """Each layer's router on its part of a microbatch: the loss, and the gradient of its weights, over tp."""
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    done = []
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        for router in routers_of(built):
            weight, input_sbh = numbers(router.moe)
            router.weight.data.copy_(torch.tensor(weight))
            part = torch.tensor(input_sbh).float().chunk(job.layout.tp, 0)[built.program.coords.tp_rank]
            if router.expert_bias is not None:
                router.expert_bias += torch.linspace(-0.3, 0.3, len(router.expert_bias))
            weights, _ = router(part)
            (gradient,) = torch.autograd.grad((weights * 0.0).sum(), router.weight)
            loss = router.counted[-1].clone()
            if job.layout.tp > 1:
                distributed.all_reduce(gradient)
                distributed.all_reduce(loss)
            done.append({"loss": loss.item(), "gradient": gradient.numpy()})
    return done


def routers_of(built) -> list[ExpertRouter]:
    return [module for module in built.chunks[0].modules() if isinstance(module, ExpertRouter)]


def numbers(moe: Moe) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a router and (s, b, h) of input."""
    rng = np.random.default_rng(5)
    weight, input_sbh = rng.normal(size=(moe.experts, HIDDEN)) * 0.3, rng.normal(size=(SEQ, SAMPLES, HIDDEN))
    return weight.astype(np.float32).astype(np.float64), input_sbh.astype(np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_the_equations(ranks, layout):
    """Value and gradient; the gradient by central differences, along random directions, with the counts held."""
    world_size, fields = LAYOUTS[layout]
    job = job_of(model_of(*LOSSES.values()), world_size=world_size, **fields)  # a layer for each
    scale = SEQ * SAMPLES if job.objective.per_token else 1
    for result in ranks.run(routed, world_size, job):
        for ours, (name, moe) in zip(result, LOSSES.items(), strict=True):
            weight, input_sbh = numbers(moe)
            # Sums of some hundred terms in fp32.
            assert ours["loss"] == pytest.approx(equations(input_sbh @ weight.T, moe), rel=1e-5), name
            for direction in np.random.default_rng(1).normal(size=(3, *weight.shape)) * 1e-6:
                ends = [equations(input_sbh @ (weight + sign * direction).T, moe) for sign in (1, -1)]
                slope = (ends[0] - ends[1]) / 2 * scale
                assert (ours["gradient"] * direction).sum() == pytest.approx(slope, rel=2e-4, abs=1e-11 * scale), name


def moved(job) -> dict:
    """Two steps: what experts were chosen in each, and the biases after it."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        routers = routers_of(built)
        done = []
        for step in range(2):
            result = train_step(built, microbatches(built, step), step=step)
            done.append((result.load, [router.expert_bias.clone().numpy() for router in routers]))
        return {"steps": done, "dtype": str(routers[0].expert_bias.dtype)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_biases_move_by_the_sign_of_the_load_of_all_ranks(ranks, precision):
    """By the rate, up below the mean and down above it, the same on every rank, in fp32 whatever the weights."""
    moe = attrs.evolve(BASE, score="sigmoid", expert_bias=True, expert_bias_rate=0.02)
    job = job_of(model_of(moe, moe), world_size=2, precision=precision, layout__ep=2)
    results = ranks.run(moved, 2, job)
    biases = np.zeros((2, moe.experts))
    for step in range(2):
        load, _ = results[0]["steps"][step]
        counts = np.array([load.tokens[layer] for layer in range(2)])
        assert counts.sum(1).tolist() == [job.batch.gbs * job.batch.seq_len * moe.topk] * 2
        biases = biases + 0.02 * np.sign(counts.mean(1, keepdims=True) - counts)
        for result in results:
            np.testing.assert_allclose(result["steps"][step][1], biases, atol=1e-7)
            assert result["steps"][step][0] == load
    assert results[0]["dtype"] == "torch.float32"


def dropped(job) -> dict:
    """A step under a capacity: its load, and the gradients' norm."""
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        mean = accumulate(built, microbatches(built, 0))
        routers = routers_of(built)
        kept = sum(router.counted[-2].item() for router in routers)
        chosen = sum(router.counted[:-2].sum().item() for router in routers)
        result = train_step(built, microbatches(built, 0), step=0)
        return {"loss": mean.loss, "norm": result.grad_norm, "load": result.load, "kept": kept, "chosen": chosen}


TP = {"layout__tp": 2, "layout__sp": True, "layout__etp": 2}


@pytest.mark.parametrize(
    ("drop", "layout", "dispatchers"),
    [
        ("probs", {"layout__ep": 2}, (("alltoall", False), ("allgather", False), ("alltoall", True))),
        ("position", {"layout__ep": 2}, (("alltoall", False), ("allgather", False), ("alltoall", True))),
        ("probs", TP, (("alltoall", False), ("alltoall_seq", False), ("alltoall_seq", True))),
    ],
    ids=["ep2 probs", "ep2 position", "tp2 etp2 probs"],
)
def test_padding_and_dispatchers_do_not_change_what_is_dropped(ranks, drop, layout, dispatchers):
    """Padded or not, however tokens reach their experts: one loss, one gradient, one share of choices dropped."""
    moe = attrs.evolve(BASE, capacity_factor=0.75, drop=drop)
    seen = []
    for dispatcher, pad in dispatchers:
        spec = attrs.evolve(moe, pad_to_capacity=pad)
        fields = {**layout, "comm__moe_dispatcher": dispatcher}
        results = ranks.run(dropped, 2, job_of(model_of(spec, spec), world_size=2, **fields))
        share = 1 - sum(r["kept"] for r in results) / sum(r["chosen"] for r in results)
        assert results[0]["load"].dropped == pytest.approx(share, abs=1e-6)
        seen.append((results[0]["loss"], results[0]["norm"], share))
    assert 0.2 < seen[0][2] < 0.6  # three quarters of an equal share find room at most
    for other in seen[1:]:
        assert other == pytest.approx(seen[0], rel=1e-5)
