"""How a launch communicates: what runs beside what, and how tokens reach their experts."""

from collections.abc import Iterator

from ridgeline.core.codec import Plain
from ridgeline.models.scripts.arguments import Reader


def comm_of(reader: Reader) -> Plain:
    dispatcher = reader.text("moe-token-dispatcher-type", "allgather")
    if dispatcher not in ("alltoall", "alltoall_seq", "allgather"):
        reader.lost("moe-token-dispatcher-type", f"{dispatcher} has no word in a job; alltoall stands in its place")
        dispatcher = "alltoall"
    return {
        "overlap_grad_reduce": reader.has("overlap-grad-reduce"),
        "overlap_param_gather": reader.has("overlap-param-gather"),
        "moe_dispatcher": dispatcher,
        "moe_overlap": list(_moe_overlap(reader, dispatcher)),
        "p2p": "batched" if reader.has("no-overlap-p2p-communication") else "overlapped",
        "tp_overlap": _tp_overlap(reader),
        "moe_fb_overlap": reader.has("moe-fb-overlap") or reader.has("overlap-moe-expert-parallel-comm"),
    }


def _moe_overlap(reader: Reader, dispatcher: str) -> Iterator[str]:
    """What runs while tokens are on their way.

    Source:
        Ascend/MindSpeed 2.1.0, features_manager/moe: moe_alltoall_overlap.py (which turns on the overlap of shared
        experts where there are any), moe_allgather_overlap.py, tp_extend_ep.py; Megatron-LM's TransformerConfig.
    """
    if reader.has("moe-permutation-async-comm"):
        if dispatcher == "allgather":
            yield "permutation"
        else:
            note = "tokens that are not gathered are sorted before they are sent"
            reader.lost("moe-permutation-async-comm", note, "no effect")
    exchange = _asks(reader, "moe-alltoall-overlap-comm", dispatcher != "allgather", "alltoall or alltoall_seq")
    exchange |= _asks(reader, "moe-allgather-overlap-comm", dispatcher == "allgather", "allgather")
    alone = _asks(reader, "moe-shared-expert-overlap", dispatcher != "allgather", "alltoall or alltoall_seq")
    has_shared = reader.has("n-shared-experts") or reader.has("moe-shared-expert-intermediate-size")
    if alone or (exchange and has_shared):
        yield "shared_experts"
    if exchange:
        yield "weight_gradients"


def _asks(reader: Reader, flag: str, goes: bool, dispatchers: str) -> bool:
    if reader.has(flag) and not goes:
        reader.fault(flag, "goes with another dispatcher", f"use --moe-token-dispatcher-type {dispatchers}")
    return reader.has(flag) and goes


def _tp_overlap(reader: Reader) -> str:
    asked = "mc2" if reader.has("use-ascend-mc2") else "coc" if reader.has("use-ascend-coc") else "none"
    tp = reader.integer("tensor-model-parallel-size", 1) or 1
    return asked if reader.has("sequence-parallel") and tp > 1 else "none"
