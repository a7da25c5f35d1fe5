"""What a program reads of its tensors at the fake level, where tensors hold no numbers.

A program that reads no number runs on fake tensors as it is. Ours reads a few: how many tokens go to each expert, the
norm of all gradients, a step's loss. Every one has an answer here, by what it depends on and never by where it is read:

    integers, booleans     computed for real beside the fake tensors, unless they depend on weights or activations
    the choice of a top-k  balanced: row t chooses t*k .. t*k + k-1, modulo what there is to choose from
    what others send       what this rank sends: all ranks are taken to hold the same
    single real numbers    1.0, and the place that read it is told

So the splits of an all-to-all come out of the program's own arithmetic, for a router that spreads tokens evenly.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ridgeline.core.errors import LoweringError

LARGEST, LARGEST_REALS = 1 << 23, 64
"""Elements of the largest tensors whose values are kept: a routing map of 32,768 tokens to 256 experts; a few sums."""

UNKNOWN = 1.0
"""Read where nothing is known: finite, so that the step counts as a good one."""

CHOICES: Mapping[str, int] = MappingProxyType(
    {"aten::topk": 1, "npu::npu_moe_gating_top_k": 1, "npu::npu_moe_gating_top_k_softmax": 1}
)
"""Ops that choose, and which of their outputs says what."""

_VALUE = "_known_value"
"""Under which a fake tensor carries its numbers, for as long as it lives."""

_aten = torch.ops.aten


class KnownValues(TorchDispatchMode):
    """Numbers that depend on no weight or activation.

    Attributes:
        reads: The places that read others, ``file:line function``, each with how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default:
            return self._read(args[0])
        if func in _SHAPED:
            return _SHAPED[func](self, *args, **kwargs)
        if func is _aten.index.Tensor or func is _aten.index_put_.default or func is _aten.index_put.default:
            args = (args[0], self._as_integers(args[1]), *args[2:])
        name = func._schema.name
        result = func(*args, **kwargs)
        if func is _aten.record_stream.default:
            return result
        if name.startswith("c10d::"):
            for target, value in self._received(name, args):
                self._keep(target, value)
            return result
        if name in CHOICES:
            self._keep(result[CHOICES[name]], _balanced(result[CHOICES[name]], of=args[0].shape[-1]))
            return result
        written = _written(func, args, kwargs)
        outputs = [out for out in (*tree_flatten(result)[0], *written) if isinstance(out, Tensor)]
        if not _may_know(func, outputs) or not self._compute(func, args, kwargs, result):
            for tensor in written:
                vars(tensor).pop(_VALUE, None)
        return result

    def value_of(self, tensor: Tensor) -> Tensor | None:
        """The numbers of a tensor, on the host; None if they are not known."""
        if isinstance(tensor, FakeTensor):
            return vars(tensor).get(_VALUE)
        return tensor if tensor.device.type == "cpu" else None

    def _compute(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        """Do an op on the numbers of its arguments; False where some are not known."""
        leaves, spec = tree_flatten((args, kwargs))
        values = []
        for leaf in leaves:
            value = self._input(func, leaf) if isinstance(leaf, Tensor) else leaf
            if value is None and leaf is not None:
                return False
            values.append(_CPU if isinstance(leaf, torch.device) else value)
        with unset_fake_temporarily(), torch.no_grad():
            real_args, real_kwargs = tree_unflatten(values, spec)
            real = func(*real_args, **real_kwargs)
        for out, value in zip(tree_flatten(result)[0], tree_flatten(real)[0], strict=True):
            if isinstance(out, FakeTensor):
                self._keep(out, value)
        return True

    def _input(self, func: Any, tensor: Tensor) -> Tensor | None:
        """A tensor that an op can take for real: of some ops only its shape and dtype count."""
        if func in _LIKE:
            with unset_fake_temporarily():
                return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return self.value_of(tensor)

    def _keep(self, tensor: Tensor, value: Tensor | None) -> None:
        if value is None:
            vars(tensor).pop(_VALUE, None)
        else:
            vars(tensor)[_VALUE] = value

    def _read(self, tensor: Tensor) -> Any:
        value = self.value_of(tensor)
        if value is not None:
            with unset_fake_temporarily():
                return value.item()
        place = _place()
        if not tensor.dtype.is_floating_point:
            raise LoweringError(f"a trace has no numbers, and {place} reads a {tensor.dtype} that depends on them")
        self.reads[place] = self.reads.get(place, 0) + 1
        return UNKNOWN

    def known(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor.

        Raises:
            LoweringError: They depend on weights or activations.
        """
        value = self.value_of(tensor)
        if value is None:
            raise LoweringError(
                f"a trace has no numbers, and {_place()} reads a {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        return value

    def _masked_select(self, tensor: Tensor, mask: Tensor) -> Tensor:
        chosen, value = self.known(mask), self.value_of(tensor)
        with unset_fake_temporarily():
            real = None if value is None else value.masked_select(chosen)
            count = int(chosen.expand(torch.broadcast_shapes(tensor.shape, mask.shape)).sum())
        return self._fresh(tensor.new_empty(count), real)

    def _nonzero(self, mask: Tensor) -> Tensor:
        value = self.known(mask)
        with unset_fake_temporarily():
            real = value.nonzero()
        return self._fresh(mask.new_empty(real.shape, dtype=torch.int64), real)

    def _fresh(self, tensor: Tensor, value: Tensor | None) -> Tensor:
        self._keep(tensor, value)
        return tensor

    def _as_integers(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Masks as the positions they name."""
        integers: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                integers.append(index)
            else:
                integers += self._nonzero(index).unbind(1)
        return integers

    def _received(self, name: str, args: Any) -> list[tuple[Tensor, Tensor | None]]:
        """What a collective writes, if every rank holds what this one does; sums of several ranks are not known."""
        match name.removeprefix("c10d::"), args:
            case (("_allgather_base_" | "alltoall_base_"), [out, x, *_]):
                return [(out, _repeated(self.value_of(x), out))]
            case "allgather_", [outs, inputs, *_]:
                return [(out, self.value_of(x)) for row, x in zip(outs, inputs, strict=True) for out in row]
            case "broadcast_", _:
                return []
            case _, [first, *_]:
                return [(x, None) for x in tree_flatten(first)[0] if isinstance(x, Tensor)]
        return []


class _Arrays(TorchFunctionMode):
    """Numbers that torch reads below its operators: for numpy's arrays, and for new tensors."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            value = self.known.known(args[0])
            with unset_fake_temporarily():
                return value.numpy()
        if func is torch.tensor:
            args = tree_map(lambda leaf: leaf.item() if isinstance(leaf, FakeTensor) else leaf, args)
            if kwargs and kwargs.get("device") is not None and not kwargs.get("requires_grad"):
                # Made on the host and moved by an operator, which can be followed.
                return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **(kwargs or {}))


@contextmanager
def known_values() -> Iterator[KnownValues]:
    """A context within `fake_npu` in which a program reads numbers as this module's text says."""
    known = KnownValues()
    with known, _Arrays(known):
        yield known


_CPU = torch.device("cpu")

_LIKE = frozenset(
    getattr(_aten, name).default
    for name in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
)
"""Ops that read no number of their tensor."""

_SHAPED: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
    {_aten.masked_select.default: KnownValues._masked_select, _aten.nonzero.default: KnownValues._nonzero}
)
"""Ops whose outputs' shapes are numbers of their inputs."""


def _may_know(func: Any, outputs: Sequence[Tensor]) -> bool:
    """Whether the numbers an op gives are worth to be kept: integers, few real numbers, or the first of many."""
    if not outputs or torch.Tag.nondeterministic_seeded in func.tags or func.namespace == "npu":
        return False
    return all(
        out.numel() <= (LARGEST_REALS if out.dtype.is_floating_point and func not in _LIKE else LARGEST)
        for out in outputs
    )


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an op writes to in place."""
    named = zip(func._schema.arguments, args, strict=False)
    pairs = [*named, *((a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs)]
    values = [value for argument, value in pairs if argument.alias_info and argument.alias_info.is_write]
    return [x for x in tree_flatten(values)[0] if isinstance(x, FakeTensor)]


def _balanced(chosen: Tensor, *, of: int) -> Tensor:
    """A choice among ``of`` places, row by row, that takes each as often as any other."""
    with unset_fake_temporarily():
        return torch.arange(chosen.numel()).remainder(of).to(chosen.dtype).view(chosen.shape)


def _repeated(value: Tensor | None, out: Tensor) -> Tensor | None:
    if value is None or not value.numel() or out.numel() % value.numel():
        return None
    with unset_fake_temporarily():
        return value.flatten().repeat(out.numel() // value.numel()).view(out.shape)


def _place() -> str:
    """Who reads: the innermost frame that is neither torch's nor a mode's."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    frame = next(f for f in reversed(frames) if f.name not in _MODES and not f.filename.endswith(_BRIDGE))
    return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}"


_MODES, _BRIDGE = ("__torch_dispatch__", "__torch_function__"), "device/bridge.py"
