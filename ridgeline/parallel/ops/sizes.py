"""What the operations of a job on one rank are measured in.

``tokens`` are those of a sequence slice and microbatch (seq_len/cp * samples) and ``own_tokens`` those whose residual
stream this rank holds (``tokens/tp`` under sp, else all). ``ring`` and ``ulysses`` are how many ranks pass keys and
values on, and exchange heads. ``sums_experts``: the gradient of an expert's weights is added to its sum before the next
one's is made; an npu makes those of all experts in one product.
"""

from typing import NamedTuple

from ridgeline.core.job import Dpo, Job, SelectiveRecompute
from ridgeline.core.model import Norm
from ridgeline.parallel.shards import padded_vocab


class Sizes(NamedTuple):
    """What the operations of a job on one rank are measured in."""

    tokens: int
    own_tokens: int
    samples: int
    seq_len: int
    hidden: int
    norm: Norm
    vocab: int
    width: int
    tp: int
    sp: bool
    cp: int
    ring: int
    ulysses: int
    gathers_kv: bool
    repeats_kv: bool
    ep: int
    etp: int
    dispatcher: str
    moe_overlap: tuple[str, ...]
    sums_experts: bool
    recomputes_attention: bool
    plain: tuple[str, ...]
    pads_values: bool
    dropout: bool
    preference: str
    copies_logits: bool
    caps_logits: bool
    normalizes_head: bool
    loss_chunk: int | None
    moe_balance: float
    indexer_learns: bool


def sizes_of(job: Job) -> Sizes:
    """The sizes of a job's operations; ``width`` is the bytes of an element of weights and activations.

    Of preference pairs, chosen and rejected go through together.
    """
    layout, recompute = job.layout, job.memory.recompute
    ring, ulysses = layout.context_degrees
    preference = job.objective.loss if isinstance(job.objective, Dpo) else ""
    samples = job.batch.mbs * (2 if preference else 1)
    tokens = job.batch.seq_len // (layout.cp * layout.slices) * samples
    return Sizes(
        tokens=tokens,
        own_tokens=tokens // layout.tp if layout.sp else tokens,
        samples=samples,
        seq_len=job.batch.seq_len,
        hidden=job.model.hidden,
        norm=job.model.norm,
        vocab=padded_vocab(job.model.vocab_size, layout),
        width=4 if job.precision.params == "fp32" else 2,
        tp=layout.tp,
        sp=layout.sp,
        cp=layout.cp,
        ring=ring,
        ulysses=ulysses,
        gathers_kv=layout.cp > 1 and layout.cp_algorithm == "kv_allgather",
        repeats_kv=layout.repeat_kv,
        ep=layout.ep,
        etp=layout.etp,
        dispatcher=job.comm.moe_dispatcher,
        moe_overlap=job.comm.moe_overlap,
        sums_experts=job.memory.fused_accumulation or job.cluster.chip.device != "npu",
        recomputes_attention=isinstance(recompute, SelectiveRecompute) and "core_attn" in recompute.modules,
        plain=job.memory.plain,
        pads_values=job.memory.pads_values,
        dropout=getattr(job.objective, "dropout", 0.0) > 0,
        preference=preference,
        copies_logits=job.memory.loss == "copied",
        caps_logits=job.model.logit_softcap is not None,
        normalizes_head=job.model.normalized_head,
        loss_chunk=job.memory.loss_chunk,
        moe_balance=job.memory.moe_balance,
        indexer_learns=job.objective.indexer_loss > 0,
    )
