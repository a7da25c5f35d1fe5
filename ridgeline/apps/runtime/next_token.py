"""How the next token is chosen from a model's logits."""

import attrs
import torch

from ridgeline.core.fields import at_least, check_spec, real


@attrs.frozen(kw_only=True)
class Sampling:
    """How tokens are chosen, and how many.

    Attributes:
        max_tokens: Tokens at most.
        temperature: What logits are divided by; 0 always takes the likeliest.
        top_k: Of so many likeliest tokens; None of all.
        top_p: Of the fewest likeliest that together have this probability.
        seed: Of the draws; equal seeds draw equal tokens.
    """

    max_tokens: int = at_least(0, default=256)
    temperature: float = real(0.0, minimum=0.0)
    top_k: int | None = at_least(1, default=None)
    top_p: float = real(1.0, above=0.0, maximum=1.0)
    seed: int = at_least(0, default=1234)
    __attrs_post_init__ = check_spec


def choose_token(logits_v: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token.

    Args:
        logits_v: (vocabulary,), any float.
        sampling: How to choose.
        generator: On the CPU, where draws are the same whatever the model runs on.
    """
    logits_v = logits_v.float().cpu()
    if sampling.temperature == 0.0:
        return int(logits_v.argmax())
    probabilities_v = kept(logits_v / sampling.temperature, sampling).softmax(-1)
    return int(torch.multinomial(probabilities_v, 1, generator=generator))


def kept(logits_v: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits with those of tokens that may not be chosen at minus infinity."""
    if sampling.top_k is not None and sampling.top_k < len(logits_v):
        least = logits_v.topk(sampling.top_k).values[-1]
        logits_v = logits_v.masked_fill(logits_v < least, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = logits_v.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while those before it have not reached top_p, so the likeliest always does.
        late = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logits_v = logits_v.masked_fill(torch.zeros_like(late).scatter(0, order, late), float("-inf"))
    return logits_v
