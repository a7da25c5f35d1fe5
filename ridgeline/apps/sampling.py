"""How tokens are chosen, as options of the verbs that make text."""

from typing import Annotated, Any, Literal

import attrs
from cyclopts import Parameter

from ridgeline.apps.edges import edge


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class SamplingOptions:
    """Options that ``generate`` and ``chat`` share.

    Attributes:
        max_tokens: Tokens to make at most.
        temperature: What logits are divided by; 0 always takes the likeliest token.
        top_k: Choose among so many of the likeliest tokens.
        top_p: Choose among the fewest likeliest tokens that together have this probability.
        seed: Of the draws.
    """

    max_tokens: Annotated[int, Parameter(name=("--max-tokens", "--max-new-tokens"))] = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 1234

    def sampling(self) -> Any:
        """As the runtime takes them, checked."""
        return edge("ridgeline.apps.runtime.next_token:Sampling")(**attrs.asdict(self))


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class ModelOptions:
    """Where and how the model runs.

    Attributes:
        tokenizer: Folder of the tokenizer; by default the model's own.
        device: What it runs on.
        dtype: Of weights and activations; by default fp32 on a CPU, elsewhere bf16.
    """

    tokenizer: str | None = None
    device: Literal["cpu", "npu", "cuda"] = "cpu"
    dtype: Literal["bf16", "fp32"] | None = None
