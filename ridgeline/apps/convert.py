"""``ridgeline convert``: between checkpoints and Hugging Face folders."""

import sys
from pathlib import Path
from typing import Literal

from ridgeline.apps.edges import edge
from ridgeline.core.errors import Problem, SpecError


def convert(
    source: Path,
    output: Path | None = None,
    /,
    *,
    check: Path | None = None,
    tokenizer: Path | None = None,
    dtype: Literal["bf16", "fp16", "fp32"] | None = None,
) -> int:
    """Export a checkpoint to a Hugging Face folder, import a folder as a checkpoint of weights, or compare the two.

    Args:
        source: A saved step, the folder of a run (its latest step), or a Hugging Face folder.
        output: Folder to make; it appears when it is whole.
        check: A Hugging Face folder: run it under transformers and compare its logits with the source's. Exit code 1:
            they are further apart than the dtype explains.
        tokenizer: To put beside exported weights; by default the job's.
        dtype: Of the weights; by default as they are.
    """
    if output is None and check is None:
        raise SpecError(Problem("output", None, "is required, a folder to make", "or compare: --check FOLDER"))
    if output is not None:
        _convert(source, output, tokenizer=tokenizer, dtype=dtype)
        sys.stdout.write(f"{output}\n")
    return 0 if check is None else _compare(source, check)


def _convert(source: Path, output: Path, *, tokenizer: Path | None, dtype: str | None) -> None:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if (source / "config.json").is_file():
            edge("ridgeline.checkpoint.io.convert:import_hf")(source, output, dtype=dtype, progress=progress)
        else:
            edge("ridgeline.checkpoint.io.convert:export_hf")(
                source, output, tokenizer=tokenizer, dtype=dtype, progress=progress
            )


def _compare(source: Path, folder: Path) -> int:
    agreement = edge("ridgeline.apps.runtime.compare:compare_with_transformers")(source, folder)
    verdict = "agree" if agreement.good else "DO NOT AGREE"
    sys.stdout.write(
        f"{source} and {folder} under transformers {verdict}: logits differ by {agreement.difference:.1e} of the "
        f"largest, the likeliest token is the same at {agreement.same_choice:.0%} of positions "
        f"({agreement.dtype} weights)\n"
    )
    return 0 if agreement.good else 1
