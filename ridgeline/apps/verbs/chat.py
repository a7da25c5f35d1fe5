"""``ridgeline chat``: talk to a trained model."""

import sys

import attrs

from ridgeline.apps.edges import edge
from ridgeline.apps.sampling import ModelOptions, SamplingOptions

ASK = "> "


def chat(
    model: str,
    /,
    *,
    system: str | None = None,
    sampling: SamplingOptions | None = None,
    options: ModelOptions | None = None,
) -> None:
    """Talk to a model that has a chat template, until the end of the input (Ctrl-D).

    Args:
        model: A Hugging Face folder, a saved step, or the folder of a run (its latest step).
        system: What the model is told first.
        sampling: How tokens are chosen.
        options: Where the model runs.
    """
    edge("ridgeline.apps.runtime.generate:chat")(
        model,
        _ask,
        _tell,
        (sampling or SamplingOptions()).sampling(),
        system=system,
        **attrs.asdict(options or ModelOptions()),
    )


def _ask() -> str | None:
    """The user's next words; None at the end of the input."""
    try:
        return input(ASK if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _tell(piece: str) -> None:
    sys.stdout.write(piece or "\n")
    sys.stdout.flush()
