"""Decoders of attention and a dense feed-forward."""

from tests.parity.cases.case import DENSE, NO_HEAD_DIM, Case, rope

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama": Case(rope("default"), every_day=DENSE),
    "llama tied": Case({"tie_word_embeddings": True}, every_day=()),
    "llama biased": Case({"attention_bias": True, "mlp_bias": True}, every_day=DENSE),
    "llama linear": Case(rope("linear", factor=3.0), every_day=()),
    "llama llama3": Case(rope("llama3", **LLAMA3), every_day=DENSE),
    "llama yarn": Case(rope("yarn", factor=4.0, original_max_position_embeddings=16), every_day=()),
    "mistral": Case({"sliding_window": 7}),
    "qwen2": Case(without=NO_HEAD_DIM),
    "qwen2 window": Case(
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
        without=NO_HEAD_DIM,
        every_day=DENSE,
    ),
    "qwen3": Case(every_day=DENSE),
    "gemma": Case({"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": Case({"sliding_window": 7, "query_pre_attn_scalar": 9, "num_hidden_layers": 4}),
    "glm": Case({"partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0}),
    "glm4": Case({"partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0}),
    "hunyuan_v1_dense": Case({"pad_token_id": 0, **rope("dynamic", factor=1.0, alpha=50.0)}),
    "internlm3": Case({"attention_bias": True, "mlp_bias": True, **rope("dynamic", factor=2.0)}, every_day=("pp2",)),
    "phi3": Case(
        {
            "sliding_window": 7,
            "pad_token_id": 0,
            "original_max_position_embeddings": 16,
            **rope("longrope", short_factor=[1.0] * 5, long_factor=[1.0, 1.3, 1.7, 2.2, 3.1]),
        },
        without=NO_HEAD_DIM,
    ),
    "seed_oss": Case({"attention_bias": True, "attention_out_bias": True, "pad_token_id": 0, "attention_dropout": 0.0}),
}
