"""Checkpoints in the classic per-rank layout, opened as buffers; their layout is read off their names and shapes."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from ridgeline.checkpoint.classic import FILE, POINTER, ClassicForm, LaidOut, classic_holders, lay_out, name_of_tensor
from ridgeline.checkpoint.classic_optimizer import MASTER
from ridgeline.checkpoint.io.classic_training import WITHOUT, read_optimizer, read_training
from ridgeline.checkpoint.io.mapped import FileTensor
from ridgeline.checkpoint.io.recorded import record_in
from ridgeline.checkpoint.io.sources import Opened, dtype_faults, unlike
from ridgeline.checkpoint.io.torch_file import read_torch_file
from ridgeline.checkpoint.pieces import Holder
from ridgeline.checkpoint.published import names_fault
from ridgeline.checkpoint.record import RECORD, model_of
from ridgeline.core.errors import CheckpointError, PlanError
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec

OPTIMIZER_FILE = "distrib_optim.pt"
TRAINING = ("optimizer", "opt_param_scheduler", "rng_state")
"""What Megatron-LM keeps of a run: megatron/training/checkpointing.py, ``generate_state_dict``."""

EMBEDDING = "embedding.word_embeddings.weight"

Files = Mapping[str, Mapping[str, FileTensor]]

_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_LAYER = re.compile(r"model(\d*)/decoder\.layers\.(\d+)\.")


def is_classic(folder: Path) -> bool:
    """Whether a folder is of the classic layout: a run's, or one step's."""
    return (folder / POINTER).is_file() or any(folder.glob(f"mp_rank_*/{FILE}"))


def step_folder(folder: Path) -> Path:
    """The folder of the step that a folder means.

    Raises:
        CheckpointError: What says so names none that is there.
    """
    if not (folder / POINTER).is_file():
        return folder
    step = (folder / POINTER).read_text(errors="replace").strip()
    found = folder / (f"iter_{int(step):07d}" if step.isdigit() else step)
    if not found.is_dir() or found.parent != folder:
        raise CheckpointError(f"file={folder / POINTER}: names step {step!r}, and {found.name} is not there")
    return found


def open_classic(folder: Path, *, model: ModelSpec | None = None, optimizer: bool = False) -> Opened:
    """The weights of a step.

    Args:
        folder: Of a run, or of one step.
        model: Whose weights they are; by default what a record beside them says.
        optimizer: Open the state of training too.

    Raises:
        CheckpointError: No model is named, a file is missing or damaged, or tensors fit the model in no layout.
    """
    told = next((place for place in (folder, folder.parent) if (place / RECORD).is_file()), None)
    record = None if told is None else record_in(told)
    model = model or (model_of(record) if record else None)
    if model is None:
        raise CheckpointError(f"checkpoint={folder}: does not say whose weights it holds; name the model: --model")
    step = step_folder(folder)
    paths = sorted(step.glob(f"mp_rank_*/{FILE}"))
    if not paths:
        raise CheckpointError(f"checkpoint={step}: holds no mp_rank_*/{FILE}")
    contents = {path: read_torch_file(path, step) for path in paths}
    files = {f"{path.parent.name}/{FILE}": _tensors_of(path, content) for path, content in contents.items()}
    holders, unused, layout = _fitting(step, model, files, _extensions(contents.values()))
    tensors = {
        (holder.name, buffer.name): files[holder.name][buffer.name] for holder in holders for buffer in holder.buffers
    }
    unused += tuple(_of_training(contents, ("rng_state",) if optimizer else TRAINING))
    opened = Opened("classic", folder, model, holders, tensors, unused, record, tuple(paths), layout)
    named = {f"{path.parent.name}/{FILE}": (path, content) for path, content in contents.items()}
    return _with_optimizer(opened, named) if optimizer else opened


def _with_optimizer(opened: Opened, contents: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> Opened:
    """A checkpoint with what the optimizer in each of its files keeps."""
    assert opened.layout is not None
    holders, tensors = [], dict(opened.tensors)
    try:
        for holder in opened.holders:
            kept = read_optimizer(*contents[holder.name], holder.buffers, ep=opened.layout.ep)
            tensors |= {(holder.name, buffer.name): tensor for buffer, tensor in kept}
            holders.append(holder._replace(buffers=(*holder.buffers, *(buffer for buffer, _ in kept))))
        training = read_training(*next(iter(contents.values())))
    except (KeyError, TypeError, AttributeError) as error:  # plain data of whatever shape
        rule = f"holds an optimizer's state in a form that is not known: {type(error).__name__}: {error}"
        raise CheckpointError(f"checkpoint={opened.folder}: {rule}; {WITHOUT}") from error
    mixed = any(name.startswith(f"{MASTER}/") for _, name in tensors)
    return attrs.evolve(opened, holders=tuple(holders), tensors=tensors, training=attrs.evolve(training, mixed=mixed))


def _tensors_of(path: Path, content: Any) -> dict[str, FileTensor]:
    """A file's tensors by chunk and name; what is no tensor (an extra state) is left out."""
    named = content if isinstance(content, dict) else {}
    chunks = {key: value for key, value in named.items() if re.fullmatch(r"model\d*", str(key))}
    if not chunks or not all(isinstance(value, dict) for value in chunks.values()):
        raise CheckpointError(f"file={path}: holds no model")
    return {
        f"{chunk}/{name_of_tensor(str(name))}": tensor
        for chunk, state in chunks.items()
        for name, tensor in state.items()
        if isinstance(tensor, FileTensor)
    }


def _extensions(contents: Iterable[Mapping[str, Any]]) -> tuple[bool, ...]:
    """Whether experts are spread over tp too, as a launch's arguments say: packed, the two look the same."""
    said = [getattr(content.get("args"), "moe_tp_extend_ep", None) for content in contents]
    told = tuple(dict.fromkeys(one for one in said if isinstance(one, bool)))
    return told or (False, True)


def _of_training(contents: Mapping[Path, Mapping[str, Any]], keys: Sequence[str]) -> Iterator[str]:
    """What a training run keeps beside its weights under these keys, which is not read."""
    for path, content in contents.items():
        yield from (f"{path.parent.name}/{FILE}: {key}" for key in keys if content.get(key))
        if (path.parent / OPTIMIZER_FILE).is_file():
            yield f"{path.parent.name}/{OPTIMIZER_FILE}"


def _fitting(
    folder: Path, model: ModelSpec, files: Files, extensions: Sequence[bool]
) -> tuple[tuple[Holder, ...], tuple[str, ...], Layout]:
    """The holders of the layout that these files have, the tensors that the model has no use for, and the layout."""
    faults: list[tuple[str, ...]] = []
    for laid, form, numbers in _layouts(folder, model, files, extensions):
        try:
            holders = classic_holders(laid, form, numbers=numbers)
        except PlanError as error:
            faults.append(tuple(str(error).splitlines()))
            continue
        misfit, unused = _misfit(holders, files, tied=model.tied_embeddings)
        if not misfit:
            there = (h._replace(buffers=tuple(b for b in h.buffers if b.name in files[h.name])) for h in holders)
            return tuple(there), unused, laid.layout
        faults.append(misfit)
    raise CheckpointError(
        unlike(f"checkpoint={folder}", model, min(faults, key=len, default=("  no layout has such folders",)))
    )


def _misfit(holders: tuple[Holder, ...], files: Files, *, tied: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = {holder.name for holder in holders}
    if missing := sorted(names - files.keys()):
        return (f"  {missing[0]}: is missing",), ()
    if foreign := sorted(files.keys() - names):
        return (f"  {foreign[0]}: no rank of this layout writes it",), ()
    faults: list[str] = []
    unused: list[str] = []
    for holder in holders:
        found = files[holder.name]
        expected = [(buffer.name, buffer.shape) for buffer in holder.buffers]
        # A tied head, and a second embedding on one rank, are left out by some writers.
        optional = [name for name, _ in expected if name not in found and _is_copy(name, found, tied=tied)]
        unused += [f"{holder.name}: {name}" for name in found if _says_nothing(name)]
        there = {name: tensor for name, tensor in found.items() if not _says_nothing(name)}
        shapes = ((name, tensor.shape) for name, tensor in there.items())
        misfit = (
            *names_fault(shapes, (e for e in expected if e[0] not in optional), ()),
            *dtype_faults((name, tensor.dtype) for name, tensor in there.items()),
        )
        faults += [f"  {holder.name}: {line.strip()}" for line in misfit]
    return tuple(faults), tuple(unused)


def _is_copy(name: str, found: Mapping[str, FileTensor], *, tied: bool) -> bool:
    chunk, _, tensor = name.partition("/")
    embedded = (other.partition("/") for other in found if other.endswith(EMBEDDING))
    elsewhere = any(other != chunk for other, _, _ in embedded)
    return (tied and tensor == "output_layer.weight") or (tensor == EMBEDDING and elsewhere)


def _says_nothing(name: str) -> bool:
    return name.endswith(("rotary_pos_emb.inv_freq", "_extra_state"))


def _layouts(
    folder: Path, model: ModelSpec, files: Files, extensions: Sequence[bool]
) -> Iterator[tuple[LaidOut, ClassicForm, dict[tuple[int, int], tuple[int, ...]]]]:
    """Every layout that has folders of these names, with the numbers that the layers have in them."""
    parts = [_RANK.fullmatch(name.split("/")[0]) for name in files]
    if None in parts:
        raise CheckpointError(f"checkpoint={folder}: has a folder that is no rank's among mp_rank_*")
    places = [tuple(int(part) for part in found.groups() if part is not None) for found in parts if found]
    depth = max(map(len, places))
    tp = 1 + max(place[0] for place in places)
    second = 1 + max((place[1] for place in places if len(place) > 1), default=0)
    third = 1 + max((place[2] for place in places if len(place) > 2), default=0)
    options = [(second, third)] if depth == 3 else [(second, 1), (1, second)]
    forms = _forms(files, extensions)
    embeddings = (
        tensor.shape[0] for tensors in files.values() for name, tensor in tensors.items() if name.endswith(EMBEDDING)
    )
    rows = next(embeddings, 1)
    for pp, ep in options:
        numbers, vpp = _numbers(files, pp, depth)
        for form in forms:
            for etp in dict.fromkeys((1, tp)):
                all_ep = ep * tp if form.tp_extend_ep else ep
                for placement in ("loop", "v") if vpp == 2 else ("loop",):
                    layout = _layout(tp, pp, vpp, all_ep, etp, numbers=numbers, placement=placement, rows=rows)
                    try:
                        yield lay_out(model, layout), form, numbers
                    except (PlanError, ValueError):
                        continue


def _layout(
    tp: int,
    pp: int,
    vpp: int,
    ep: int,
    etp: int,
    *,
    numbers: Mapping[tuple[int, int], tuple[int, ...]],
    placement: str,
    rows: int,
) -> Layout:
    """A layout whose stages hold as many layers as were found, and whose tp ranks so many rows of the vocabulary."""
    if placement == "v":
        order = [(rank, 0) for rank in range(pp)] + [(rank, 1) for rank in reversed(range(pp))]
    else:
        order = [(rank, chunk) for chunk in range(vpp) for rank in range(pp)]
    stages = tuple(len(numbers.get(place, ())) for place in order)
    fields: dict[str, Any] = {"stages": stages} if pp * vpp > 1 else {}
    # Of the schedules that lie in a V, this one may be uneven.
    fields |= {"schedule": "zb_v"} if placement == "v" else {"vpp": vpp}
    return Layout(tp=tp, pp=pp, ep=ep, etp=etp, vocab_multiple=rows, **fields)


def _numbers(files: Files, pp: int, depth: int) -> tuple[dict[tuple[int, int], tuple[int, ...]], int]:
    """The numbers of the layers of each (pp_rank, chunk), and how many chunks a rank has."""
    seen: dict[tuple[int, int], set[int]] = {}
    chunks = 1
    for name, tensors in files.items():
        found = _RANK.fullmatch(name.split("/")[0])
        assert found is not None
        pp_rank = int(found[2]) if pp > 1 and depth > 1 else 0
        for tensor in tensors:
            if layer := _LAYER.match(tensor):
                chunk = int(layer[1] or 0)
                chunks = max(chunks, chunk + 1)
                seen.setdefault((pp_rank, chunk), set()).add(int(layer[2]))
    numbers = {
        (rank, chunk): tuple(sorted(seen.get((rank, chunk), ()))) for rank in range(pp) for chunk in range(chunks)
    }
    return numbers, chunks


def _forms(files: Files, extensions: Sequence[bool]) -> list[ClassicForm]:
    """The forms that names like these have."""
    names = {name for tensors in files.values() for name in tensors}
    te = any(name.endswith(".layer_norm_weight") for name in names)
    grouped = any(re.search(r"\.experts\.(weight1|linear_fc1\.weight\d+)$", name) for name in names)
    impl, experts = "te" if te else "local", "grouped" if grouped else "sequential"
    return [
        ClassicForm(impl=impl, experts=experts, tp_extend_ep=extend, dialect=dialect)
        for dialect in ("mindspeed", "megatron")
        for extend in extensions
    ]
