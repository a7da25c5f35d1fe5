"""A small config of every family, as published; no two sizes of a model are equal, so nothing transposed can fit."""

from typing import Any

from transformers import CONFIG_MAPPING

DENSE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
}
LATENT = {
    **{key: value for key, value in DENSE.items() if key != "head_dim"},
    "num_key_value_heads": 6,
    "kv_lora_rank": 13,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 9,
    "first_k_dense_replace": 2,
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 0,
}
INDEXED = {"index_n_heads": 3, "index_head_dim": 8, "index_topk": 5}
SPARSE = {
    name: LATENT[name]
    for name in LATENT
    if name.startswith(("first_k", "moe_", "n_", "num_experts", "num_next", "topk"))
}
WITHOUT_HEADS = {name: size for name, size in DENSE.items() if name not in ("head_dim", "num_key_value_heads")}
SCALES = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 7}
EXAMPLES: dict[str, dict[str, Any]] = {
    "aquila": {**WITHOUT_HEADS, "model_type": "aquila", "num_key_value_heads": 2},
    "baichuan": {
        **{name: WITHOUT_HEADS[name] for name in WITHOUT_HEADS if not name.startswith(("max", "rope"))},
        "model_type": "baichuan",
        "model_max_length": 64,
        "z_loss_weight": 0,
    },
    "chatglm": {
        "model_type": "chatglm",
        "padded_vocab_size": 40,
        "hidden_size": 24,
        "ffn_hidden_size": 20,
        "num_layers": 3,
        "num_attention_heads": 6,
        "kv_channels": 8,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "seq_length": 64,
        "layernorm_epsilon": 1e-6,
        "rope_ratio": 50,
        "add_qkv_bias": True,
    },
    "internlm": {
        **{name: size for name, size in WITHOUT_HEADS.items() if name != "rope_theta"},
        "model_type": "internlm",
        "bias": True,
        "rotary": {"base": 5000, "type": "dynamic"},
    },
    "internlm2": {
        **WITHOUT_HEADS,
        "model_type": "internlm2",
        "num_key_value_heads": 2,
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "minicpm": {
        **WITHOUT_HEADS,
        **SCALES,
        "model_type": "minicpm",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    },
    "plm": {
        **WITHOUT_HEADS,
        **{name: LATENT[name] for name in LATENT if name.startswith(("kv_", "qk_", "v_"))},
        "model_type": "plm",
        "q_lora_rank": None,
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 40, "n_positions": 64, "n_embd": 24, "n_layer": 3, "n_head": 4},
    "qwen": {
        "model_type": "qwen",
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 28,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "kv_channels": 8,
        "seq_length": 64,
        "layer_norm_epsilon": 1e-6,
    },
    "deepseek_v32": {**LATENT, **INDEXED, "model_type": "deepseek_v32", "q_lora_rank": 16},
    "gemma": {**DENSE, "model_type": "gemma", "tie_word_embeddings": True},
    "gemma2": {
        **DENSE,
        "model_type": "gemma2",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 5,
        "sliding_window": 16,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "glm4_moe": {**DENSE, **SPARSE, "model_type": "glm4_moe", "attention_bias": True, "use_qk_norm": True},
    "glm_moe_dsa": {**LATENT, **INDEXED, "model_type": "glm_moe_dsa", "q_lora_rank": 16},
    "minimax_m2": {
        **DENSE,
        "model_type": "minimax_m2",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rotary_dim": 4,
    },
    "mistral": {**DENSE, "model_type": "mistral", "sliding_window": 16},
    "qwen2_moe": {
        **DENSE,
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 14,
        "shared_expert_intermediate_size": 18,
        "mlp_only_layers": [1],
    },
    "bloom": {"model_type": "bloom", "vocab_size": 40, "hidden_size": 24, "n_layer": 3, "n_head": 4},
    "glm": {**DENSE, "model_type": "glm", "pad_token_id": 0},
    "internlm3": {**DENSE, "model_type": "internlm3", "qkv_bias": True, "bias": True},
    "phi3": {
        **{name: size for name, size in DENSE.items() if name != "head_dim"},
        "model_type": "phi3",
        "original_max_position_embeddings": 16,
        "sliding_window": 12,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 3.0]},
        "pad_token_id": 0,
    },
    "minicpm3": {
        **DENSE,
        "model_type": "minicpm3",
        **{name: LATENT[name] for name in LATENT if name.startswith(("kv_", "qk_", "v_"))},
        "head_dim": 4,
        "num_key_value_heads": 6,
        "q_lora_rank": 16,
        **SCALES,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.5],
            "long_factor": [1.0, 3.0],
            "original_max_position_embeddings": 32,
        },
    },
    "seed_oss": {**DENSE, "model_type": "seed_oss", "attention_out_bias": True, "pad_token_id": 0},
    "glm4": {**DENSE, "model_type": "glm4", "partial_rotary_factor": 0.5, "pad_token_id": 0},
    "longcat_flash": {
        **{
            name: LATENT[name]
            for name in LATENT
            if name.startswith(("vocab", "hidden", "num_att", "max", "rms", "rope"))
        },
        **{name: LATENT[name] for name in LATENT if name.startswith(("kv_", "qk_", "v_", "routed"))},
        "model_type": "longcat_flash",
        "head_dim": 4,
        "num_layers": 2,
        "q_lora_rank": 16,
        "ffn_hidden_size": 20,
        "expert_ffn_hidden_size": 12,
        "n_routed_experts": 6,
        "zero_expert_num": 2,
        "moe_topk": 3,
    },
    "mamba2": {
        "model_type": "mamba2",
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_heads": 6,
        "head_dim": 8,
        "state_size": 10,
        "n_groups": 2,
    },
    "gpt_oss": {
        **DENSE,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False},
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    },
    "qwen3_next": {
        **DENSE,
        "model_type": "qwen3_next",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 14,
        "shared_expert_intermediate_size": 18,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 5,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "partial_rotary_factor": 0.5,
    },
    "deepseek_v2": {**LATENT, "model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**LATENT, "model_type": "deepseek_v3", "q_lora_rank": 16, "num_nextn_predict_layers": 1},
    "llama": {**DENSE, "model_type": "llama"},
    "qwen2": {**DENSE, "model_type": "qwen2"},
    "qwen3": {**DENSE, "model_type": "qwen3"},
    "mixtral": {**DENSE, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **DENSE,
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "mlp_only_layers": [1, 3],
    },
}
REMOTE = {name for name in EXAMPLES if EXAMPLES[name]["model_type"] not in CONFIG_MAPPING}
"""Families that transformers has no class for: their own code was published beside their weights."""

VARIANTS: dict[str, dict[str, Any]] = {
    "baichuan, first": {
        **{name: WITHOUT_HEADS[name] for name in WITHOUT_HEADS if name != "rope_theta"},
        "architectures": ["BaiChuanForCausalLM"],
        "model_type": "baichuan",
    },
    "baichuan, first 13B": {
        **{name: WITHOUT_HEADS[name] for name in WITHOUT_HEADS if not name.startswith(("max", "rope"))},
        "model_type": "baichuan",
        "vocab_size": 64000,
        "model_max_length": 64,
    },
    "llama, biases": {**EXAMPLES["llama"], "attention_bias": True, "mlp_bias": True},
    "qwen2, tied": {**EXAMPLES["qwen2"], "tie_word_embeddings": True},
    "qwen3, biases": {**EXAMPLES["qwen3"], "attention_bias": True},
}
"""The same with other parameters."""
