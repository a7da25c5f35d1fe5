"""Decoders of attention and experts."""

from tests.parity.cases.case import DENSE, NO_HEAD_DIM, Case, rope
from tests.parity.cases.latent import EXPERTS as SHARED_EXPERTS
from tests.parity.cases.latent import GROUPS

TOP2 = {"num_experts_per_tok": 2}
NARROW = {"num_experts": 6, "moe_intermediate_size": 28, **TOP2}
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 8.0}
CASES = {
    "mixtral": Case({"num_local_experts": 6, "sliding_window": 7, **TOP2}, every_day=DENSE),
    "qwen2_moe": Case({**NARROW, "shared_expert_intermediate_size": 44, "norm_topk_prob": False}),
    "qwen3_moe": Case({**NARROW, "norm_topk_prob": True}, every_day=()),
    "qwen3_moe unnormalised": Case({**NARROW, "norm_topk_prob": False, "mlp_only_layers": [1]}, every_day=DENSE),
    "glm4_moe": Case(
        {
            **SHARED_EXPERTS,
            **GROUPS,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
            "attention_bias": True,
        }
    ),
    "gpt_oss": Case(
        {
            **TOP2,
            "num_local_experts": 6,
            "sliding_window": 7,
            "swiglu_limit": 0.9,  # near enough to bound some
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            **rope("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
            "pad_token_id": 0,
        },
        every_day=("alone", "tp2 etp2"),
    ),
    "hunyuan_v1_moe": Case(
        {"num_experts": 6, "moe_topk": 2, "attention_bias": True, "pad_token_id": 0}, every_day=("tp2 ep2",)
    ),
    "minimax_m2": Case({**TOP2, "num_local_experts": 6, "rotary_dim": 6}, every_day=("alone", "tp2 etp2")),
    "step3p5": Case(
        {
            **TOP2,
            "num_sliding_attention_heads": 6,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 7,
            "rope_theta": [500.0, 100.0, 100.0, 500.0],
            "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5],
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16},
            "moe_layers_enum": "1,2,3",
            "n_routed_experts": 6,
            "moe_intermediate_size": 28,
            "share_expert_dim": 44,
            "moe_router_scaling_factor": 1.7,
            "swiglu_limits": [0.0, 0.0, 0.2, 0.3],  # near enough to bound some
            "swiglu_limits_shared": [0.2, 0.0, 0.0, 0.4],
            "pad_token_id": 0,
        },
        every_day=("alone", "tp2 ep2"),
    ),
    "phimoe": Case(
        {
            **TOP2,
            "num_local_experts": 6,
            "attention_bias": True,
            "lm_head_bias": True,
            "router_jitter_noise": 0.2,  # wide enough to leave some experts near the best
            "router_sampling": False,
            "sliding_window": 7,
            "pad_token_id": 0,
            **rope(
                "longrope",
                short_factor=[1.0, 1.3, 1.7, 2.2, 3.1],
                long_factor=[1.0, 1.3, 1.7, 2.2, 3.1],  # transformers' class takes the short ones for any length
                short_mscale=1.2,
                long_mscale=1.1,
                original_max_position_embeddings=16,
            ),
        },
        without=NO_HEAD_DIM,
        every_day=("alone", "tp2 ep2"),
    ),
}
