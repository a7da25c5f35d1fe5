"""``ridgeline convert``: between checkpoints and Hugging Face folders."""

import sys
from pathlib import Path
from typing import Literal

from ridgeline.apps.edges import edge


def convert(
    source: Path,
    output: Path,
    /,
    *,
    tokenizer: Path | None = None,
    dtype: Literal["bf16", "fp16", "fp32"] | None = None,
) -> None:
    """Export a checkpoint to a Hugging Face folder, or import a folder with a config.json as a checkpoint of weights.

    Args:
        source: A saved step, the folder of a run (its latest step), or a Hugging Face folder.
        output: Folder to make; it appears when it is whole.
        tokenizer: To put beside exported weights; by default the job's.
        dtype: Of the weights; by default as they are.
    """
    from rich.progress import Progress

    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("converting", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if (source / "config.json").is_file():
            edge("ridgeline.checkpoint.io.convert:import_hf")(source, output, dtype=dtype, progress=progress)
        else:
            edge("ridgeline.checkpoint.io.convert:export_hf")(
                source, output, tokenizer=tokenizer, dtype=dtype, progress=progress
            )
    sys.stdout.write(f"{output}\n")
