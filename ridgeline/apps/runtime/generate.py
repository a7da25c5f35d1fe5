"""What ``ridgeline generate`` and ``ridgeline chat`` run."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ridgeline.apps.runtime.engine import new_cache
from ridgeline.apps.runtime.next_token import Sampling
from ridgeline.apps.runtime.text_model import open_text_model, reply, text_after
from ridgeline.kernels.capabilities import DeviceName


def generate(
    path: str | Path,
    prompt: str,
    sampling: Sampling,
    *,
    tokenizer: str | Path | None = None,
    device: DeviceName = "cpu",
    dtype: str | None = None,
) -> Iterator[str]:
    """The text that a model puts after a prompt, in pieces as it is made.

    Args:
        path: A Hugging Face folder, a saved step, or the folder of a run.
        prompt: The text to continue.
        sampling: How tokens are chosen, and how many.
        tokenizer: By default the model's own.
        device: What it runs on.
        dtype: ``fp32`` or ``bf16``.
    """
    with open_text_model(path, tokenizer=tokenizer, device=device, dtype=dtype) as model:
        yield from text_after(model, prompt, sampling)


def chat(
    path: str | Path,
    ask: Callable[[], str | None],
    tell: Callable[[str], None],
    sampling: Sampling,
    *,
    system: str | None = None,
    tokenizer: str | Path | None = None,
    device: DeviceName = "cpu",
    dtype: str | None = None,
) -> list[dict[str, str]]:
    """Talk until ``ask`` gives None; the whole conversation.

    Args:
        path: A Hugging Face folder, a saved step, or the folder of a run.
        ask: Gives the user's next words.
        tell: Takes the answer, in pieces as it is made; an empty piece ends it.
        sampling: How tokens are chosen, and how many an answer has at most.
        system: What the model is told first.
        tokenizer: By default the model's own; it must have a chat template.
        device: What it runs on.
        dtype: ``fp32`` or ``bf16``.
    """
    messages = [{"role": "system", "content": system}] if system else []
    with open_text_model(path, tokenizer=tokenizer, device=device, dtype=dtype) as model:
        cache = new_cache(model.engine)
        while (words := ask()) is not None:
            messages.append({"role": "user", "content": words})
            answer = []
            for piece in reply(model, messages, sampling, cache=cache):
                tell(piece)
                answer.append(piece)
            tell("")
            messages.append({"role": "assistant", "content": "".join(answer)})
    return messages
