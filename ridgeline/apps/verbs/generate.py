"""``ridgeline generate``: continue a text with a trained model."""

import sys

import attrs

from ridgeline.apps.edges import edge
from ridgeline.apps.sampling import ModelOptions, SamplingOptions


def generate(
    model: str,
    /,
    *,
    prompt: str,
    sampling: SamplingOptions | None = None,
    options: ModelOptions | None = None,
) -> None:
    """Continue a text, as it is made.

    Args:
        model: A Hugging Face folder, a saved step, or the folder of a run (its latest step).
        prompt: The text to continue.
        sampling: How tokens are chosen.
        options: Where the model runs.
    """
    pieces = edge("ridgeline.apps.runtime.generate:generate")(
        model, prompt, (sampling or SamplingOptions()).sampling(), **attrs.asdict(options or ModelOptions())
    )
    first = next(pieces, "")  # whatever is wrong is told before the prompt is shown
    sys.stdout.write(prompt + first)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
