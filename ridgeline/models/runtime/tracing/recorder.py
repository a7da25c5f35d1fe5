"""What a step does, operation by operation: memory, FLOPs and bytes, collectives."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ridgeline.models.runtime.tracing.flops import ALLOCATIONS, op_bytes, op_flops
from ridgeline.models.runtime.tracing.live import LiveBytes
from ridgeline.models.runtime.tracing.where import Where
from ridgeline.parallel.traced import Sample, TracedAction, TracedCollective, TracedOp


class Recorder(TorchDispatchMode):
    """Writes down every operation within its context.

    Attributes:
        actions: Those that are over.
        samples: Memory over time.
        peak: Bytes by owner at the worst moment.
    """

    def __init__(self, where: Where, live: LiveBytes) -> None:
        super().__init__()
        self.where, self.live = where, live
        self.actions: list[TracedAction] = []
        self.samples: list[Sample] = []
        self.peak: dict[str, int] = {}
        self._ops: dict[tuple[str, str, str], list[int]] = {}
        self._collectives: dict[tuple[str, tuple[int, ...], int, str, str], int] = {}
        self._count = 0
        self._highest = 0
        self._began = False
        self._at, self._module, self._action_peak, self._peak_module = where.at, "", 0, ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        module = self.where.now()
        self._turn(module)
        result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result
        inputs, outputs = tree_flatten((args, kwargs))[0], tree_flatten(result)[0]
        self.live.see(outputs, module)
        self._weigh(module)
        if func.namespace == "c10d":
            for kind, ranks, size in _collectives(func._schema.name.removeprefix("c10d::"), args):
                key = (kind, ranks, size, self.where.phase, module)
                self._collectives[key] = self._collectives.get(key, 0) + 1
        elif not func.is_view and func._schema.name not in ALLOCATIONS:
            self._count += 1
            row = self._ops.setdefault((self.where.phase, module, func._schema.name), [0, 0, 0])
            row[0] += 1
            row[1] += op_flops(func, args, kwargs, result)
            row[2] += op_bytes((*inputs, *outputs))
        return result

    def end_action(self) -> None:
        """Close the action that runs, and begin to record the next."""
        self.live.measure()
        self.actions.append(TracedAction(self._at, self._action_peak, self.live.total, self._peak_module))
        self._at, self._action_peak, self._peak_module = self.where.at, 0, ""

    def ops(self) -> tuple[TracedOp, ...]:
        """Every operation, equal ones together."""
        return tuple(TracedOp(*key, *row) for key, row in self._ops.items())

    def collectives(self) -> tuple[TracedCollective, ...]:
        """Every collective, equal ones together."""
        return tuple(
            TracedCollective(kind, ranks, size, count, phase, module)
            for (kind, ranks, size, phase, module), count in self._collectives.items()
        )

    def _turn(self, module: str) -> None:
        """Note that another action or module begins."""
        if self.where.at != self._at:
            if self._began:
                self.end_action()
            self._began, self._at = True, self.where.at
        if module != self._module:
            self._module = module
            self.samples.append(Sample(self._count, self.where.at, module, self.live.total))

    def _weigh(self, module: str) -> None:
        if self.live.total > self._action_peak:
            self.live.measure()
            if self.live.total > self._action_peak:
                self._action_peak, self._peak_module = self.live.total, module
        if self.live.total > self._highest:
            self._highest, self.peak = self.live.total, dict(self.live.by_owner)


def _collectives(name: str, args: Sequence[Any]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Kind, ranks and bytes of the whole tensor of the collectives that one operation is."""
    match name, args:
        case "allreduce_" | "allreduce_coalesced_", [tensors, group, *_]:
            yield from (("all_reduce", _ranks(group), op_bytes([x])) for x in tensors)
        case "broadcast_", [tensors, group, *_]:
            yield from (("broadcast", _ranks(group), op_bytes([x])) for x in tensors)
        case "_allgather_base_", [out, _, group, *_]:
            yield "all_gather", _ranks(group), op_bytes([out])
        case "allgather_", [outputs, _, group, *_]:
            yield from (("all_gather", _ranks(group), op_bytes(row)) for row in outputs)
        case "allgather_into_tensor_coalesced_", [outputs, _, group, *_]:
            yield from (("all_gather", _ranks(group), op_bytes([x])) for x in outputs)
        case "_reduce_scatter_base_", [_, whole, group, *_]:
            yield "reduce_scatter", _ranks(group), op_bytes([whole])
        case "reduce_scatter_tensor_coalesced_", [_, inputs, group, *_]:
            yield from (("reduce_scatter", _ranks(group), op_bytes([x])) for x in inputs)
        case "reduce_scatter_", [_, inputs, group, *_]:
            yield from (("reduce_scatter", _ranks(group), op_bytes(row)) for row in inputs)
        case "alltoall_base_", [_, sent, group, *_]:
            yield "all_to_all", _ranks(group), op_bytes([sent])
        case "alltoall_", [_, sent, group, *_]:
            yield "all_to_all", _ranks(group), op_bytes(sent)
        case "send", [tensors, group, to, *_]:
            ranks = _ranks(group)
            pair = tuple(sorted((distributed.get_rank(), ranks[to])))
            yield from (("p2p", pair, op_bytes([x])) for x in tensors)
        case (("recv_" | "recv_any_source_" | "barrier" | "monitored_barrier_"), _):
            return
        case _:
            raise NotImplementedError(f"c10d::{name}: a trace does not know what it moves")


def _ranks(group: Any) -> tuple[int, ...]:
    return tuple(distributed.get_process_group_ranks(distributed.ProcessGroup.unbox(group)))
