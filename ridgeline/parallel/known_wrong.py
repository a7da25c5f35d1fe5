"""Layouts that run, train and are silently wrong in megatron-core 0.16.1, and what the planner does about each.

One table. A rule either

    refuses   the job, with the way out;
    repairs   it, which the plan says as a warning;
    avoids    the fault in our own modules: the job stays as it is, and ``sentence`` says how.
"""

from collections.abc import Callable
from typing import NamedTuple

import attrs

from ridgeline.core.errors import Problem
from ridgeline.core.job import Job
from ridgeline.core.model import GatedDeltaNet, LatentAttention

MEGATRON = "https://github.com/NVIDIA/Megatron-LM"


class KnownWrong(NamedTuple):
    """One way to be wrong.

    Attributes:
        name: Of the rule.
        reference: Where upstream tells of it, or how it was found.
        applies: Whether a job runs into it.
        action: ``refuse``, ``repair`` or ``avoid``.
        path: The field that is refused or changed.
        sentence: What goes wrong, and what is done.
        repair: The job without the fault, for ``repair``.
    """

    name: str
    reference: str
    applies: Callable[[Job], bool]
    action: str
    path: str
    sentence: str
    repair: Callable[[Job], Job] | None = None


def repaired(job: Job) -> tuple[Job, tuple[str, ...]]:
    """The job with every known fault repaired that can be, and a sentence for each repair.

    A second time there is nothing left to repair.
    """
    sentences = []
    for rule in RULES:
        if rule.repair is not None and rule.applies(job):
            job = rule.repair(job)
            sentences.append(f"{rule.path}: {rule.sentence} ({rule.reference})")
    return job, tuple(sentences)


def refusals(job: Job) -> tuple[Problem, ...]:
    """Every known fault that a job runs into and that cannot be repaired."""
    return tuple(
        Problem(rule.path, _value_at(job, rule.path), f"{rule.sentence} ({rule.reference})")
        for rule in RULES
        if rule.action == "refuse" and rule.applies(job)
    )


def _value_at(job: Job, path: str) -> object:
    value: object = job
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _has_mixer(job: Job, kind: type) -> bool:
    return any(isinstance(block.mixer, kind) for block in job.model.kinds)


def _has_experts(job: Job) -> bool:
    return bool(job.model.moes)


def _overlap_p2p(job: Job) -> Job:
    return attrs.evolve(job, comm=attrs.evolve(job.comm, p2p="overlapped"))


def _sequence_parallel(job: Job) -> Job:
    return attrs.evolve(job, layout=attrs.evolve(job.layout, sp=True))


RULES: tuple[KnownWrong, ...] = (
    KnownWrong(
        name="pp2-vpp-batched-p2p",
        reference=f"{MEGATRON}/issues/1450, {MEGATRON}/issues/750",
        applies=lambda job: job.layout.pp == 2 and job.layout.vpp > 1 and job.comm.p2p == "batched",
        action="repair",
        path="comm.p2p",
        sentence="with pp=2 and vpp>1, batched sends to the next and the previous stage are mixed up; "
        "set to 'overlapped'",
        repair=_overlap_p2p,
    ),
    KnownWrong(
        name="gated-delta-net-tp-without-sp",
        reference=f"{MEGATRON}/issues/7452, finding 11",
        applies=lambda job: _has_mixer(job, GatedDeltaNet) and job.layout.tp > 1 and not job.layout.sp,
        action="repair",
        path="layout.sp",
        sentence="without sp, gradients of a gated delta net's out_norm are not summed over tp; set to true",
        repair=_sequence_parallel,
    ),
    KnownWrong(
        name="masked-loss-under-cp",
        reference=f"{MEGATRON}/issues/7452, finding 9; {MEGATRON}/pull/7513",
        applies=lambda job: job.layout.cp > 1 and job.batch.packing == "eod_reset" and not job.objective.per_token,
        action="avoid",
        path="objective.per_token",
        sentence="with cp>1, a loss averaged by microbatch is divided by each cp rank's own count of tokens; "
        "ours by the count of all",
    ),
    KnownWrong(
        name="latent-attention-tp",
        reference=f"{MEGATRON}/issues/1699, {MEGATRON}/pull/6839",
        applies=lambda job: _has_mixer(job, LatentAttention) and job.layout.tp > 1 and not job.layout.sp,
        action="repair",
        path="layout.sp",
        sentence="without sp, gradients of latent attention's down-projections are wrong by up to 1 %; set to true, "
        "with them whole on every tp rank",
        repair=_sequence_parallel,
    ),
    KnownWrong(
        name="mtp-loss-under-cp",
        reference=f"{MEGATRON}/pull/7498",
        applies=lambda job: job.model.mtp > 0 and job.layout.cp > 1,
        action="refuse",
        path="layout.cp",
        sentence="the multi-token-prediction loss is averaged over each cp rank's own tokens; use 1",
    ),
    KnownWrong(
        name="shared-adam-step",
        reference="found with megatron-core 0.16.1 and torch's Adam",
        applies=lambda job: job.memory.distributed_optimizer,
        action="avoid",
        path="memory.distributed_optimizer",
        sentence="after a load one `step` tensor serves all parameters, and Adam advances it once for each; "
        "our loader gives every parameter its own",
    ),
    KnownWrong(
        name="gathered-logits",
        reference=f"{MEGATRON}/issues/7452",
        applies=lambda job: job.layout.tp > 1,
        action="avoid",
        path="layout.tp",
        sentence="gathered logits in the vocabulary-parallel loss add log(tp) to it; "
        "our head always keeps logits split over tp, and only generation gathers them",
    ),
    KnownWrong(
        name="router-count-under-padding-mask",
        reference=f"{MEGATRON}/issues/7452, finding 10; {MEGATRON}/pull/7481",
        applies=lambda job: _has_experts(job) and job.layout.tp > 1,
        action="avoid",
        path="layout.tp",
        sentence="with a padding mask the router's auxiliary loss counts tokens of all tp ranks as its own; "
        "our batches hold no padding and give it no mask",
    ),
    KnownWrong(
        name="experts-replicated-over-tp",
        reference="found with megatron-core 0.16.1: tensor_parallel/layers.py, `allreduce` depends on ep alone",
        applies=lambda job: _has_experts(job) and job.layout.ep == 1 and job.layout.etp != job.layout.tp,
        action="avoid",
        path="layout.etp",
        sentence="with ep=1, experts' gradients are summed over dp and cp, not over the tp ranks that hold copies of "
        "them, which drift apart; ours go through the experts' own groups whatever ep is",
    ),
    KnownWrong(
        name="expert-parallel-change-on-resume",
        reference="found with megatron-core 0.16.1: KeyError in the chained optimizers",
        applies=_has_experts,
        action="avoid",
        path="layout.ep",
        sentence="experts have an optimizer of their own when ep>1 and share one when ep=1, so that its state cannot "
        "be loaded across; our checkpoints keep it by parameter and expert",
    ),
)
