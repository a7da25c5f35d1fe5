"""Step-3.5-Flash by transformers: the text model of its Step-3.7-Flash under a head, with the published names."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7PreTrainedModel, Step3p7TextModel


class Step3p5ForCausalLM(Step3p7PreTrainedModel, GenerationMixin):
    """What transformers builds around its text model, without images."""

    config_class = Step3p7TextConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  transformers' way

    def __init__(self, config: Step3p7TextConfig) -> None:
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutputWithPast:
        output = self.model(input_ids, **options)
        return CausalLMOutputWithPast(
            logits=self.lm_head(output.last_hidden_state), past_key_values=output.past_key_values
        )


def register() -> None:
    """Let transformers' automatic classes find it."""
    own = ("mlp", "shared_experts", "experts")
    published = get_checkpoint_conversion_mapping("step3p7") or []
    mapping = [one for one in published if any(name in target for target in one.target_patterns for name in own)]
    register_checkpoint_conversion_mapping("step3p5", mapping, overwrite=True)
    AutoModelForCausalLM.register(Step3p7TextConfig, Step3p5ForCausalLM, exist_ok=True)
