"""Models with layers that carry a state."""

from tests.parity.cases.case import Case
from tests.parity.cases.experts import NARROW, TOP2

MAMBA2 = {"conv_kernel": 3, "state_size": 14, "chunk_size": 8}
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "ssm_state_size": 14,
    "conv_kernel": 3,
    "chunk_size": 8,
    "mlp_hidden_act": "relu2",
    "time_step_min": 0.4,
    "layer_norm_epsilon": 1e-4,
}
CASES = {
    "mamba2": Case({**MAMBA2, "num_heads": 8, "head_dim": 10, "n_groups": 2, "layer_norm_epsilon": 1e-4}, every_day=()),
    "mamba2 biased": Case(
        {**MAMBA2, "num_heads": 4, "head_dim": 20, "n_groups": 4, "use_bias": True}, every_day=("pp2",)
    ),
    "nemotron_h": Case(
        {
            **NEMOTRON_H,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "mlp_bias": True,
        },
        every_day=(),
    ),
    "nemotron_h experts": Case(
        {
            **NEMOTRON_H,
            **TOP2,
            "n_routed_experts": 6,
            "moe_intermediate_size": 28,
            "layers_block_type": ["full_attention", "moe", "linear_attention", "moe"],
            "moe_shared_expert_intermediate_size": 44,
            "routed_scaling_factor": 1.7,
        }
    ),
    "qwen3_next": Case(
        {
            **NARROW,
            "shared_expert_intermediate_size": 44,
            "full_attention_interval": 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_conv_kernel_dim": 3,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 10,
        }
    ),
}
