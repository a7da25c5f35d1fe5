"""``ridgeline convert``: weights from any format and layout to any other."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from ridgeline.apps.edges import edge
from ridgeline.apps.failures import INTERRUPTED
from ridgeline.apps.reading import read_model
from ridgeline.core.errors import Problem, SpecError

if TYPE_CHECKING:
    from ridgeline.core.layout import Layout

LayoutFields: TypeAlias = Annotated[
    str,
    Parameter(
        name="FIELD",
        allow_leading_hyphen=True,
        help="The layout of a classic checkpoint, as --layout.tp 2 --layout.pp 2, or for short --tp 2 --pp 2.",
    ),
]


def convert(
    source: Path,
    output: Path | None = None,
    /,
    *options: LayoutFields,
    format: Literal["hf", "torch_dist", "classic", "peft"] | None = None,
    dtype: Literal["bf16", "fp16", "fp32"] | None = None,
    tokenizer: Path | None = None,
    model: str | None = None,
    adapter: Path | None = None,
    experts: Literal["sequential", "grouped"] = "sequential",
    impl: Literal["local", "te"] = "local",
    tp_extend_ep: Annotated[bool, Parameter(negative="")] = False,
    dialect: Literal["mindspeed", "megatron"] = "mindspeed",
    optimizer: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    verify: Annotated[bool, Parameter(negative="")] = False,
    check: Path | None = None,
) -> int:
    """Convert a checkpoint or a Hugging Face folder to another format or layout, in bounded memory.

    Started again after it was killed, it goes on where it stood. A folder that it gave is whole and carries checksums.

    Args:
        source: A saved step, the folder of a run (its latest step), a Hugging Face folder, or a checkpoint of
            MindSpeed-LLM or Megatron-LM.
        output: Folder to make; it appears when it is whole.
        options: Fields of a layout.
        format: hf, torch_dist (any layout loads it), classic (a file for each rank) or peft (the adapters of a run
            alone, which are merged into the others). By default classic when a layout or a trait of classic is given,
            else torch_dist from a Hugging Face folder and hf from the others.
        dtype: Of the weights; by default as they are.
        tokenizer: To put beside exported weights; by default the job's or the source's.
        model: Whose weights a foreign checkpoint holds: a preset, a job file or a folder with a config.json.
        adapter: A LoRA adapter in PEFT's format, merged into the weights of a Hugging Face folder.
        experts: Of a classic checkpoint: grouped as --moe-grouped-gemm has them, or one module each.
        impl: Of a classic checkpoint: names of the layers as --transformer-impl has them.
        tp_extend_ep: Of a classic checkpoint: experts are spread over tp too, layout.ep counts all of them.
        dialect: Of a classic checkpoint: whose way with latent attention and shared experts, where the two differ.
        optimizer: Take the optimizer's state along, of a run or of a classic checkpoint saved without the distributed
            optimizer, so that training goes on from there.
        dry_run: Print the plan, and write nothing.
        verify: Read the folder again and compare checksums; without an output, those of the source.
        check: A Hugging Face folder: run it under transformers and compare its logits with the source's. Exit code 1:
            they are further apart than the dtype explains.
    """
    if output is None and check is None and not verify and not dry_run:
        raise SpecError(Problem("output", None, "is required, a folder to make", "or compare: --check FOLDER"))
    if format == "peft":
        given = {"options": options, "dtype": dtype, "adapter": adapter, "check": check}
        given |= {"optimizer": optimizer, "dry_run": dry_run, "verify": verify, "tokenizer": tokenizer}
        if unmeant := [name for name, value in given.items() if value]:
            rule = "is no option of adapters alone"
            raise SpecError(Problem(f"--{name}", given[name], rule, "leave it out") for name in unmeant)
        edge("ridgeline.checkpoint.io.convert:export_adapter")(source, output)
        sys.stdout.write(f"{output}\n")
        return 0
    if output is not None or dry_run:
        layout = _layout_of(options)
        form = _form(experts=experts, impl=impl, tp_extend_ep=tp_extend_ep, dialect=dialect)
        wanted = edge("ridgeline.checkpoint.io.convert:Wanted")(
            format=format or _usual_format(source, layout, form),
            layout=layout,
            form=form,
            dtype=dtype,
            tokenizer=None if tokenizer is None else str(tokenizer),
            adapter=None if adapter is None else str(adapter),
            optimizer=optimizer,
        )
        planned = edge("ridgeline.checkpoint.io.convert:plan_conversion")(source, wanted, model=read_model(model))
        if dry_run:
            sys.stdout.write(_plan_text(planned))
            return 0
        if not _convert(planned, output):
            return INTERRUPTED
    if verify:
        with _bar("verifying") as progress:
            checked = edge("ridgeline.checkpoint.io.convert:verify")(output or source, progress=progress)
        sys.stdout.write(f"{output or source}: {checked / 1e6:.1f} MB are as they were written\n")
    return 0 if check is None else _compare(source, check)


def _convert(planned: Any, output: Path | None) -> bool:
    """Carry out a conversion and tell what it did; whether it came to its end."""
    try:
        with _bar("converting") as progress:
            outcome = edge("ridgeline.checkpoint.io.convert:convert")(planned, output, progress=progress)
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; start it again to go on: nothing stands under {output} yet\n")
        return False
    if outcome.was_done:
        sys.stderr.write("already converted: nothing to do\n")
    elif outcome.kept:
        sys.stderr.write(f"went on after an interruption: {outcome.kept} files were there already\n")
    for name in outcome.dropped:
        sys.stderr.write(f"left out: {name}\n")
    sys.stdout.write(f"{output}\n")
    return True


def _layout_of(options: Sequence[str]) -> "Layout":
    """The layout that options say.

    Raises:
        SpecError: They say something else, or a field is wrong.
    """
    from ridgeline.apps.overrides import apply_overrides, parse_overrides
    from ridgeline.core.codec import structure
    from ridgeline.core.layout import Layout

    plain = apply_overrides({}, parse_overrides(options))
    if others := [name for name in plain if name != "layout"]:
        rule = "is no option of a conversion"
        raise SpecError(
            Problem(f"--{name}", plain[name], rule, "give fields of the layout, --layout.tp 2") for name in others
        )
    return structure(plain.get("layout", {}), Layout, path="layout")


def _usual_format(source: Path, layout: "Layout", form: Any) -> str:
    from ridgeline.core.layout import Layout

    if (layout, form) != (Layout(), _form()):
        return "classic"
    return "torch_dist" if (source / "config.json").is_file() else "hf"


def _form(**fields: Any) -> Any:
    from ridgeline.checkpoint.classic import ClassicForm

    return ClassicForm(**fields)


def _plan_text(planned: Any) -> str:
    destination, opened = planned.destination, planned.opened
    rows = (
        ("source", f"{opened.folder} ({opened.format}), model {opened.model.name}"),
        ("format", planned.wanted.format),
        ("files", f"{len(destination.files)}"),
        ("tensors", f"{sum(len(file.entries) for file in destination.files)}, by {destination.copies} slice copies"),
        ("bytes", f"{destination.bytes} ({destination.bytes / 1e9:.2f} GB)"),
        ("memory", f"{planned.peak_bytes / 1e6:.0f} MB of chunks, {planned.threads} files at a time"),
        ("time", f"{destination.bytes / 1e9:.1f} s at 1 GB/s, what a disk of that speed would need to copy it"),
    )
    files = [f"  {file.name}: {len(file.entries)} tensors, {file.bytes} bytes" for file in destination.files]
    dropped = [f"left out: {name}" for name in opened.dropped]
    return "\n".join([*(f"{name:8} {text}" for name, text in rows), *files, *dropped]) + "\n"


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar in bytes, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _compare(source: Path, folder: Path) -> int:
    agreement = edge("ridgeline.apps.runtime.compare:compare_with_transformers")(source, folder)
    verdict = "agree" if agreement.good else "DO NOT AGREE"
    sys.stdout.write(
        f"{source} and {folder} under transformers {verdict}: logits differ by {agreement.difference:.1e} of the "
        f"largest, the likeliest token is the same at {agreement.same_choice:.0%} of positions "
        f"({agreement.dtype} weights)\n"
    )
    return 0 if agreement.good else 1
