"""A job as the arguments of a Megatron-LM launch; what Megatron-LM has no flag for is refused or told.

Positions scaled by yarn or llama3, noop layers, uneven stages, other storage of the optimizer's state, swapping and
fine-tuning take flags of MindSpeed-LLM.
"""

from collections.abc import Iterator
from itertools import chain
from types import MappingProxyType

import attrs

from ridgeline.core.diff import diff
from ridgeline.core.errors import LoweringError
from ridgeline.core.job import FullRecompute, Job, SelectiveRecompute
from ridgeline.core.model import Attention, LatentAttention, LinearRope, Llama3Rope, Mlp, Moe, YarnRope
from ridgeline.models.jobs import job_of
from ridgeline.models.scripts.job import import_command
from ridgeline.models.scripts.model_args import model_flags
from ridgeline.models.scripts.shell import Command
from ridgeline.models.scripts.training_args import memory_and_comm_flags, optimizer_flags, run_flags, tuning_flags
from ridgeline.parallel.stages import layout_text

CP_COMM_TYPES = MappingProxyType({"ring": "p2p", "ulysses": "a2a", "hybrid": "a2a+p2p", "kv_allgather": "all_gather"})
ORDERS = ("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp")


def megatron_args(job: Job) -> tuple[tuple[str, ...], ...]:
    """The words of each flag, its values behind it, such that importing them gives model, layout and batch again.

    Raises:
        LoweringError: A line for everything that no flag can say.
    """
    if faults := tuple(_faults(job)):
        raise LoweringError("\n".join(faults))
    arguments = tuple((f"--{flag}", *map(_text, values)) for flag, *values in _flags(job))
    if lost := tuple(_lost(job, arguments)):
        raise LoweringError("\n".join(lost))
    return arguments


def _lost(job: Job, arguments: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """What the arguments do not say: each field that is another one when they are read again."""
    cluster = job.cluster
    launcher = (("nnodes", str(cluster.nodes)), ("nproc_per_node", str(cluster.devices_per_node)))
    again = import_command(Command("pretrain_gpt.py", launcher, tuple(chain.from_iterable(arguments)))).plain
    read = job_of({"name": job.name, **again, "cluster": cluster})
    model = attrs.evolve(read.model, name=job.model.name, family=job.model.family)
    layout = attrs.evolve(read.layout, schedule=job.layout.schedule)  # an order that Megatron-LM runs by itself
    read = attrs.evolve(read, model=model, layout=layout)
    for part in ("model", "layout", "batch", "precision", "memory", "comm", "optimizer", "objective", "adapter"):
        for change in diff(attrs.evolve(read, **{part: getattr(job, part)}), read):
            instead = "its default" if change.right is None else repr(change.right)
            yield f"{change.path}={change.left!r}: no flag says it; {instead} would stand in its place"


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _faults(job: Job) -> Iterator[str]:
    blocks = job.model.layers()
    mixers = {block.mixer for block in blocks}
    if len(mixers) > 1:
        yield f"model.blocks.mixer={len(mixers)} kinds: the flags say one for all layers; use one"
    for mixer in sorted(mixers, key=repr):
        if not isinstance(mixer, (Attention, LatentAttention)):
            yield f"model.blocks.mixer={mixer.kind if mixer else None!r}: no flag says it; use kind='attention'"
        elif (scaling := mixer.rope.scaling) is not None:
            if not isinstance(scaling, (LinearRope, Llama3Rope, YarnRope)):
                yield f"model.blocks.mixer.rope.scaling={scaling.kind!r}: no flag says it; use linear, llama3 or yarn"
            elif isinstance(scaling, YarnRope) and scaling.attention_factor is not None:
                yield f"rope.scaling.attention_factor={scaling.attention_factor}: no flag says it; leave it out"
    for kind in (Mlp, Moe):
        parts = {block.feed_forward for block in blocks if isinstance(block.feed_forward, kind)}
        if len(parts) > 1:
            yield f"model.blocks.feed_forward={len(parts)} of kind {kind.kind!r}: the flags say one for all; use one"
    biased = {getattr(block.feed_forward, "bias", False) for block in blocks}
    if True in biased and not all(
        isinstance(mixer, Attention) and mixer.qkv_bias and mixer.out_bias for mixer in mixers
    ):
        yield "model.blocks.feed_forward.bias=True: Megatron-LM then has all biases; set qkv_bias and out_bias too"
    recompute = job.memory.recompute
    if isinstance(recompute, FullRecompute) and (recompute.stage_layers or recompute.modules):
        yield "memory.recompute: the flags say one number for all stages; leave stage_layers and modules out"
    if isinstance(recompute, SelectiveRecompute) and recompute.num_layers is not None:
        yield f"memory.recompute.num_layers={recompute.num_layers}: no flag says it for all parts; leave it out"
    if job.layout.order not in ORDERS:
        yield f"layout.order={job.layout.order!r}: Megatron-LM has {' and '.join(ORDERS)} only"
    usual = attrs.evolve(job.layout, schedule=None).schedule_name
    if job.layout.schedule_name != usual:
        yield f"layout.schedule={job.layout.schedule!r}: with vpp={job.layout.vpp} Megatron-LM runs {usual}"
    if job.memory.recompute_when != "backward":
        yield f"memory.recompute_when={job.memory.recompute_when!r}: Megatron-LM has no such flag; use 'backward'"
    if job.comm.moe_dispatcher == "allgather" and {*job.comm.moe_overlap} - {"permutation"} == {"shared_experts"}:
        rule = "shared experts alone run beside tokens that are exchanged, not gathered"
        yield f"comm.moe_overlap={job.comm.moe_overlap}: {rule}; add 'weight_gradients', or leave 'shared_experts' out"
    layers = job.model.num_layers + len(job.layout.noop_layers)
    if job.layout.stages is None and layers % (job.layout.pp * job.layout.vpp):
        yield f"layout.vpp={job.layout.vpp}: pp*vpp must divide the {layers} layers, or set layout.stages"


def _flags(job: Job) -> Iterator[tuple[object, ...]]:
    yield from model_flags(job)
    yield from _layout_flags(job)
    yield "seq-length", job.batch.seq_len
    yield "micro-batch-size", job.batch.mbs
    yield "global-batch-size", job.batch.gbs
    if job.batch.packing == "eod_reset":
        yield ("reset-position-ids",)
        yield ("reset-attention-mask",)
    if job.precision.params != "fp32":
        yield (job.precision.params,)
    if job.precision.params == "fp16" and job.precision.grads == "fp32":
        yield ("accumulate-allreduce-grads-in-fp32",)
    if job.precision.grads == "bf16":
        yield ("grad-reduce-in-bf16",)
    yield from memory_and_comm_flags(job)
    yield from tuning_flags(job)
    yield from optimizer_flags(job)
    yield from run_flags(job)


def _layout_flags(job: Job) -> Iterator[tuple[object, ...]]:
    layout = job.layout
    yield "tensor-model-parallel-size", layout.tp
    yield "pipeline-model-parallel-size", layout.pp
    yield "context-parallel-size", layout.cp
    yield "cp-comm-type", CP_COMM_TYPES[layout.cp_algorithm]
    if layout.cp_algorithm == "hybrid":
        yield "hierarchical-context-parallel-sizes", layout.ulysses, layout.cp // layout.ulysses
    if layout.repeat_kv:
        yield ("kv-head-repeat-before-uly-alltoall",)
    yield "expert-model-parallel-size", layout.ep
    yield "expert-tensor-parallel-size", layout.etp
    yield "make-vocab-size-divisible-by", layout.vocab_multiple
    if layout.sp:
        yield ("sequence-parallel",)
    if layout.stages is not None and layout.vpp == 1:
        yield "num-layer-list", ",".join(map(str, layout.stages))
    elif layout.stages is not None:
        yield "pipeline-model-parallel-layout", layout_text(layout.stages, mtp=job.model.mtp)
    elif layout.vpp > 1:
        yield "num-virtual-stages-per-pipeline-rank", layout.vpp
    if layout.noop_layers:
        yield "noop-layers", ",".join(map(str, layout.noop_layers))
    if layout.microbatch_group_size:
        yield "microbatch-group-size-per-virtual-pipeline-stage", layout.microbatch_group_size
    if layout.order == "tp-cp-ep-pp-dp":
        yield ("use-tp-pp-dp-mapping",)
