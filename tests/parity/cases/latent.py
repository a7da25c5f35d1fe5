"""Decoders of latent attention."""

from tests.parity.cases.case import DENSE, NO_HEAD_DIM, Case, rope

ATTENTION = {
    "q_lora_rank": 14,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
EXPERTS = {
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 28,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
DEEPSEEK = {**ATTENTION, **EXPERTS}
GROUPS = {"num_nextn_predict_layers": 0, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.0)
INDEXER = {"index_n_heads": 11, "index_head_dim": 9, "index_topk": 5}
CASES = {
    "deepseek_v2": Case(
        {**DEEPSEEK, "topk_method": "greedy", "n_group": 1, "topk_group": 1}, without=NO_HEAD_DIM, every_day=()
    ),
    "deepseek_v2 groups": Case(
        {**DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
        without=NO_HEAD_DIM,
    ),
    "deepseek_v3": Case({**DEEPSEEK, **GROUPS}, without=NO_HEAD_DIM, every_day=()),
    "deepseek_v3 yarn": Case({**DEEPSEEK, **GROUPS, "q_lora_rank": None, **YARN}, without=NO_HEAD_DIM, every_day=DENSE),
    "deepseek_v32": Case({**DEEPSEEK, **GROUPS, **INDEXER, **YARN}, without=NO_HEAD_DIM),
    "glm_moe_dsa": Case({**DEEPSEEK, **GROUPS, **INDEXER}, without=NO_HEAD_DIM, every_day=("alone",)),
    "glm_moe_dsa shared indexers": Case(
        {**DEEPSEEK, **GROUPS, **INDEXER, "index_topk_freq": 2, "index_skip_topk_offset": 1},
        without=NO_HEAD_DIM,
        every_day=("pp2",),
    ),
    "longcat_flash": Case(
        {
            **ATTENTION,
            "num_layers": 2,
            "head_dim": 6,
            "ffn_hidden_size": 52,
            "expert_ffn_hidden_size": 28,
            "n_routed_experts": 6,
            "zero_expert_num": 3,
            "moe_topk": 4,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-6,
        }
    ),
    "minicpm3": Case(
        {
            **ATTENTION,
            "rms_norm_eps": 1e-3,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 7,
            "tie_word_embeddings": True,
            **rope("longrope", short_factor=[1.0, 1.3, 1.7], long_factor=[1.0, 3.0, 4.0]),
        },
        without=NO_HEAD_DIM,
    ),
}
