"""What a folder holds, whatever its format: holders of buffers, and the tensor in a file that each buffer is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs
import torch

from ridgeline.checkpoint.boxes import Box, slices, within
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.checkpoint.names import params_of, stored, stored_box
from ridgeline.checkpoint.pieces import Buffer, Holder, Piece, row_major
from ridgeline.checkpoint.published import names_fault
from ridgeline.checkpoint.record import Record
from ridgeline.checkpoint.reshard import Source, meetings, sources_of
from ridgeline.core.errors import CheckpointError, few
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from ridgeline.core.params import Param

Format: TypeAlias = Literal["hf", "torch_dist", "classic"]


@attrs.frozen(kw_only=True, eq=False)
class Training:
    """Where a run of training stands.

    Attributes:
        step: Updates made.
        updates: Updates that changed the weights.
        consumed_samples: Samples that it has read.
        mixed: The optimizer keeps fp32 copies of weights.
        settings: Of Adam, as a group of parameters has them in torch's words.
        scheduler: Of the learning rate, in Megatron-LM's words.
    """

    step: int
    updates: int
    consumed_samples: int
    mixed: bool = False
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    scheduler: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Opened:
    """A folder of weights, none of which is read yet.

    Attributes:
        format: Of the folder.
        folder: Where it is.
        model: Whose weights they are.
        holders: Its files, and the buffers in them.
        tensors: The tensor that each buffer is, by names of holder and buffer.
        dropped: Names of tensors that are there, and that the model has no use for.
        record: What the folder says of itself, where Ridgeline wrote it.
        files: All that was opened: if any of them changes, so may what is read.
        layout: Of the ranks that the files are of, where each has its own.
        training: Where the run stands; the holders then hold the optimizer's state too. None where it is left out.
    """

    format: Format
    folder: Path
    model: ModelSpec
    holders: tuple[Holder, ...]
    tensors: Mapping[tuple[str, str], FileTensor] = attrs.field(repr=False)
    dropped: tuple[str, ...] = ()
    record: Record | None = None
    files: tuple[Path, ...] = ()
    layout: Layout | None = None
    training: Training | None = None

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The pieces of each stored tensor, ready to be searched."""
        return sources_of(self.holders)


def check_tensors(folder: Path, model: ModelSpec, holders: Sequence[Holder], found: Mapping[str, FileTensor]) -> None:
    """Raise unless all buffers of a model are there, in their shape, and nothing else; ``found`` holds no dropped ones.

    Raises:
        CheckpointError: All that is missing, of wrong shape, foreign, or no weights.
    """
    expected = [(buffer.name, buffer.shape) for holder in holders for buffer in holder.buffers]
    shapes = ((name, tensor.shape) for name, tensor in found.items())
    faults = *names_fault(shapes, expected, ()), *dtype_faults((name, t.dtype) for name, t in found.items())
    if faults:
        raise CheckpointError(unlike(f"folder={folder}", model, faults))


def dtype_faults(found: Iterable[tuple[str, torch.dtype]]) -> Iterator[str]:
    """A line for each tensor that is not of real numbers, as weights are."""
    for name, dtype in found:
        if not dtype.is_floating_point:
            yield f"  {name}: is of dtype {str(dtype).removeprefix('torch.')}, expected a floating-point one"


def unlike(source: str, model: ModelSpec, faults: Sequence[str]) -> str:
    """What to tell of a source that is not of a model."""
    return "\n".join((f"{source}: does not hold the weights of model={model.name!r}:", *few(faults)))


def weights_in(opened: Opened, params: Mapping[str, Param] | None = None) -> Weights:
    """An opened folder as one function that reads a box of a parameter, by default of the model's."""
    params = params_of(opened.model) if params is None else params

    def read(fqn: str, box: Box, out: torch.Tensor) -> None:
        place = stored(fqn, params[fqn])
        inner = stored_box(place, box)
        target = out.view(inner.shape) if place.expert is not None else out
        wanted = Piece(place.key, inner, 0, row_major(inner.shape))
        for shared, (holder, buffer, held) in meetings(wanted, opened.sources):
            tensor = opened.tensors[holder, buffer]
            target[slices(within(shared, inner))].copy_(tensor.strided(*_lies(held, shared)))

    return read


def _lies(held: Piece, box: Box) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    start = held.start + sum(
        (a - b) * stride for a, b, stride in zip(box.offset, held.box.offset, held.strides, strict=True)
    )
    return start, box.shape, held.strides


def buffers_by_name(holders: Sequence[Holder]) -> dict[str, tuple[Holder, Buffer]]:
    """Each buffer and its holder by the buffer's name, which must be its own."""
    return {buffer.name: (holder, buffer) for holder in holders for buffer in holder.buffers}
