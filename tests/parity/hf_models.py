"""Small random models of every family as transformers builds them, with their logits and gradients.

No two sizes of a model are equal, and no norm or bias is left at its initial value. Transformers runs in the process of
the tests, which never enters the bridge.
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import transformers

from tests.models.step3p5 import register
from tests.parity.cases.case import SHARED
from tests.parity.cases.table import CASES
from tests.parity.ours.model import in_our_layout

register()
SEQ_LEN = 22


@attrs.frozen
class Judged:
    """What transformers makes of a model: logits (b, s, v), mean loss, and gradients in our layout, by our names."""

    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]


def tokens() -> torch.Tensor:
    """What every model is given: (2, s+1), of which the last s are the labels."""
    return torch.randint(0, SHARED["vocab_size"], (2, SEQ_LEN + 1), generator=torch.Generator().manual_seed(3))


def judge(name: str, folder: Path, **changes: Any) -> Judged:
    """Build a case's model, some of its fields changed, save it to a folder, and tell what it makes of `tokens`."""
    case = CASES[name]
    shared = {field: size for field, size in SHARED.items() if field not in case.without}
    config = transformers.AutoConfig.for_model(name.split()[0], **{**shared, **case.fields, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.dim() == 1:
                    tensor.add_(torch.randn_like(tensor) * 0.2)
            for buffer, tensor in model.named_buffers():
                if buffer.endswith("e_score_correction_bias"):
                    tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    text = tokens()
    logits = model(text[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    loss.backward()
    # An indexer has none: transformers chooses by it, and does not train it.
    gradients = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in model.named_parameters()}
    converted = {name: tensor.numpy() for name, tensor in in_our_layout(gradients, config).items()}
    return Judged(logits.detach().numpy(), loss.item(), converted)
