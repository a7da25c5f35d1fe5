"""Small random Hugging Face models, no two of whose sizes are equal, and no norm or bias left at its initial value."""

from pathlib import Path
from typing import Any

import torch
import transformers

_MOE = {"num_experts_per_tok": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "Qwen2": {"num_key_value_heads": 3, "tie_word_embeddings": True},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 10},
    "Mixtral": {"num_key_value_heads": 2, "num_local_experts": 5, **_MOE},
    "Qwen3Moe": {"num_key_value_heads": 6, "head_dim": 10, "num_experts": 5, "moe_intermediate_size": 20, **_MOE},
    "Mamba2": {"num_heads": 12, "head_dim": 8, "n_groups": 2, "state_size": 10, "chunk_size": 8},
    "NemotronH": {
        "layers_block_type": ["linear_attention", "moe", "full_attention"],
        "num_key_value_heads": 2,
        "head_dim": 10,
        "mamba_num_heads": 6,
        "mamba_head_dim": 9,
        "n_groups": 3,
        "ssm_state_size": 7,
        "chunk_size": 8,
        "n_routed_experts": 5,
        "moe_intermediate_size": 20,
        "moe_shared_expert_intermediate_size": 28,
        **_MOE,
    },
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False}
CONFIGS["GptOss"] = {
    "num_key_value_heads": 2,
    "head_dim": 10,
    "num_local_experts": 5,
    "rope_parameters": {**YARN, "rope_theta": 10000.0},
    "pad_token_id": 0,
    **_MOE,
}
CONFIGS["Phimoe"] = {
    "num_key_value_heads": 2,
    "num_local_experts": 5,
    "attention_bias": True,
    "lm_head_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "pad_token_id": 0,
    **_MOE,
}
CONFIGS |= {"Bloom": {"tie_word_embeddings": False}, "GPT2": {"n_inner": 56}}
ALL_CONFIGS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "DeepseekV3": {
        "num_key_value_heads": 6,
        "q_lora_rank": 28,
        "kv_lora_rank": 24,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 4,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
        "n_routed_experts": 10,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 20,
        **_MOE,
    },
}
ALL_CONFIGS["DeepseekV32"] = {
    **ALL_CONFIGS["DeepseekV3"],
    "num_nextn_predict_layers": 0,
    "index_n_heads": 7,
    "index_head_dim": 9,
    "index_topk": 5,
}


def random_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A model of a family in fp32, the same every time."""
    fields = {
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        **ALL_CONFIGS[family],
        **changes,
    }
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.dim() == 1:
                    tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def logits_of(folder: Path) -> torch.Tensor:
    """What transformers makes of a folder, on fixed tokens: (2, 16, vocabulary)."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return logits(model.eval())


@torch.no_grad()
def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    """A model's logits on fixed tokens: (2, 16, vocabulary)."""
    tokens = torch.arange(32).reshape(2, 16) * 3 % 131
    return model(tokens).logits
