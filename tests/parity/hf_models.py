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

SEQ_LEN = 22
SHARED = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "router_aux_loss_coef": 0.0,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 28}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    """Rotary positions of one kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", rope("default")),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama linear": ("Llama", rope("linear", factor=3.0)),
    "llama llama3": (
        "Llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "llama yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 7}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 6, "norm_topk_prob": True, **EXPERTS}),
    "qwen3_moe unnormalised": (
        "Qwen3Moe",
        {"num_experts": 6, "norm_topk_prob": False, "mlp_only_layers": [1], **EXPERTS},
    ),
}

LATENT = {
    "q_lora_rank": 14,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 28,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
GROUPS = {"num_nextn_predict_layers": 0, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}
CASES |= {
    "gemma": ("Gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2", {"sliding_window": 7, "query_pre_attn_scalar": 9, "num_hidden_layers": 4}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 6, "shared_expert_intermediate_size": 44, "norm_topk_prob": False, **EXPERTS},
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            **{name: size for name, size in LATENT.items() if "rank" not in name and "head" not in name},
            **GROUPS,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    "glm": ("Glm", {"partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0}),
    "internlm3": ("InternLM3", {"attention_bias": True, "mlp_bias": True, **rope("dynamic", factor=2.0)}),
    "phi3": (
        "Phi3",
        {
            "sliding_window": 7,
            "pad_token_id": 0,
            "original_max_position_embeddings": 16,
            **rope("longrope", short_factor=[1.0] * 5, long_factor=[1.0, 1.3, 1.7, 2.2, 3.1]),
        },
    ),
    "minicpm3": (
        "MiniCPM3",
        {
            **{name: size for name, size in LATENT.items() if name.startswith(("q_", "kv_", "qk_", "v_", "num_key"))},
            "rms_norm_eps": 1e-3,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 7,
            "tie_word_embeddings": True,
            **rope("longrope", short_factor=[1.0, 1.3, 1.7], long_factor=[1.0, 3.0, 4.0]),
        },
    ),
    "seed_oss": (
        "SeedOss",
        {"attention_bias": True, "attention_out_bias": True, "pad_token_id": 0, "attention_dropout": 0.0},
    ),
    "glm4": ("Glm4", {"partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0}),
    "qwen3_next": (
        "Qwen3Next",
        {
            "num_experts": 6,
            "shared_expert_intermediate_size": 44,
            "full_attention_interval": 2,
            **EXPERTS,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_conv_kernel_dim": 3,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 10,
        },
    ),
    "longcat_flash": (
        "LongcatFlash",
        {
            **{name: size for name, size in LATENT.items() if name.startswith(("q_", "kv_", "qk_", "v_", "num_key"))},
            "num_layers": 2,
            "head_dim": 6,
            "ffn_hidden_size": 52,
            "expert_ffn_hidden_size": 28,
            "n_routed_experts": 6,
            "zero_expert_num": 3,
            "moe_topk": 4,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-6,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 7,
            "swiglu_limit": 0.9,  # near enough to bound some
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            **rope("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
            "pad_token_id": 0,
        },
    ),
    "minimax_m2": ("MiniMaxM2", {"num_local_experts": 6, "num_experts_per_tok": 2, "rotary_dim": 6}),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    "deepseek_v2 groups": (
        "DeepseekV2",
        {**LATENT, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    ),
    "deepseek_v3": ("DeepseekV3", {**LATENT, **GROUPS}),
    "deepseek_v3 yarn": (
        "DeepseekV3",
        {
            **LATENT,
            **GROUPS,
            "q_lora_rank": None,
            **rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.0),
        },
    ),
}
MAMBA = {"conv_kernel": 3, "state_size": 14, "chunk_size": 8}
CASES |= {
    "mamba2": ("Mamba2", {**MAMBA, "num_heads": 8, "head_dim": 10, "n_groups": 2, "layer_norm_epsilon": 1e-4}),
    "mamba2 biased": ("Mamba2", {**MAMBA, "num_heads": 4, "head_dim": 20, "n_groups": 4, "use_bias": True}),
}
HYBRID = {
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
EXPERTS_OF_HYBRID = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 28}
CASES |= {
    "nemotron_h": (
        "NemotronH",
        {**HYBRID, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"], "mlp_bias": True},
    ),
    "nemotron_h experts": (
        "NemotronH",
        {
            **HYBRID,
            **EXPERTS_OF_HYBRID,
            "layers_block_type": ["full_attention", "moe", "linear_attention", "moe"],
            "moe_shared_expert_intermediate_size": 44,
            "routed_scaling_factor": 1.7,
        },
    ),
}


@attrs.frozen
class Judged:
    """What transformers makes of a model: logits (b, s, v), mean loss, and gradients in our layout, by our names."""

    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]


def tokens() -> torch.Tensor:
    """What every model is given: (2, s+1), of which the last s are the labels."""
    return torch.randint(0, SHARED["vocab_size"], (2, SEQ_LEN + 1), generator=torch.Generator().manual_seed(3))


def judge(case: str, folder: Path) -> Judged:
    """Build a model, save it to a folder, and tell what it makes of `tokens`."""
    family, changes = CASES[case]
    fields = {**SHARED, **changes}
    if family in ("Qwen2", "DeepseekV2", "DeepseekV3", "Phi3", "MiniCPM3"):
        del fields["head_dim"]  # they have none, or another
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.dim() == 1:
                    tensor.add_(torch.randn_like(tensor) * 0.2)
            for name, tensor in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    text = tokens()
    logits = model(text[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    loss.backward()
    gradients = {name: tensor.grad for name, tensor in model.named_parameters()}
    converted = {name: tensor.numpy() for name, tensor in in_our_layout(gradients, config).items()}
    return Judged(logits.detach().numpy(), loss.item(), converted)


def in_our_layout(tensors: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """Tensors of a transformers model under the names and in the layout of Megatron-core, written out once more."""
    if "backbone.embeddings.weight" in tensors:
        return _mamba_names(tensors)
    if config.model_type == "nemotron_h":
        return _hybrid_names(tensors, config)
    ours = {
        "embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        ours["output_layer.weight"] = tensors["lm_head.weight"]
    if config.model_type == "longcat_flash":
        tensors = tensors | _halves(tensors, config)
    for layer in range(config.num_hidden_layers):
        theirs = _below(tensors, f"model.layers.{layer}.")
        for name, tensor in {**_attention(theirs, config), **_feed_forward(theirs)}.items():
            ours[f"decoder.layers.{layer}.{name}"] = tensor
    return ours


def _mamba_names(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A model of Mamba2 layers: nothing is laid out otherwise."""
    ends = {"embeddings": "embedding.word_embeddings", "norm_f": "decoder.final_layernorm"}
    ours = {f"{name}.weight": tensors[f"backbone.{published}.weight"] for published, name in ends.items()}
    ours["output_layer.weight"] = tensors["lm_head.weight"]
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.layers.")}
    return ours | {name.replace("backbone", "decoder", 1): tensor for name, tensor in layers.items()}


def _hybrid_names(tensors: dict[str, Any], config: Any) -> dict[str, torch.Tensor]:
    """A model of layers with one part each, which are all called ``mixer``."""
    ends = {"embeddings": "embedding.word_embeddings", "norm_f": "decoder.final_layernorm"}
    ours = {f"{name}.weight": tensors[f"model.{published}.weight"] for published, name in ends.items()}
    ours["output_layer.weight"] = tensors["lm_head.weight"]
    for layer, kind in enumerate(config.layers_block_type):
        theirs = _below(tensors, f"model.layers.{layer}.")
        part = _below(theirs, "mixer.")
        norm = {"linear_attention": "norm", "full_attention": "input_layernorm"}.get(kind, "pre_mlp_layernorm")
        own = {f"{norm}.weight": theirs["norm.weight"]}
        if kind == "linear_attention":
            own |= {f"mixer.{name}": tensor for name, tensor in part.items()}
        elif kind == "full_attention":
            heads = [part[f"{x}_proj.weight"].unflatten(0, (config.num_key_value_heads, -1)) for x in "qkv"]
            own["self_attention.linear_qkv.weight"] = torch.cat(heads, 1).flatten(0, 1)
            own["self_attention.linear_proj.weight"] = part["o_proj.weight"]
        else:
            places = {"mlp.": part, "mlp.shared_experts.": _below(part, "shared_experts.")}
            for place, tensors_there in places.items():
                for name, fc in (("up", "linear_fc1"), ("down", "linear_fc2")):
                    for end in ("weight", "bias"):
                        if f"{name}_proj.{end}" in tensors_there:
                            own[f"{place}{fc}.{end}"] = tensors_there[f"{name}_proj.{end}"]
            if kind == "moe":
                own["mlp.router.weight"] = part["gate.weight"]
                for name, fc in (("up", "linear_fc1"), ("down", "linear_fc2")):
                    for expert, tensor in enumerate(part[f"experts.{name}_proj"]):
                        own[f"mlp.experts.local_experts.{expert}.{fc}.weight"] = tensor
        ours |= {f"decoder.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    return ours


def _halves(tensors: dict[str, Any], config: Any) -> dict[str, Any]:
    """LongCat-Flash's pairs of layers as layers of others: what is a list of two, apart; the experts with the first."""
    halves = {}
    for layer in range(2 * config.num_layers):
        pair, half = divmod(layer, 2)
        for name, tensor in _below(tensors, f"model.layers.{pair}.").items():
            part, _, rest = name.partition(".")
            if part == "mlp":
                if half == 0:
                    halves[f"model.layers.{layer}.shortcut.{rest}"] = tensor
            elif rest.startswith(f"{half}."):
                renamed = part.replace("mlps", "mlp")
                halves[f"model.layers.{layer}.{renamed}.{rest.removeprefix(f'{half}.')}"] = tensor
    return halves


def _below(tensors: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _delta_net(theirs: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """A gated delta net's parameters: published by key head, ours by what they make."""
    heads = config.linear_num_key_heads
    values = config.linear_num_value_heads // heads
    wide = values * config.linear_value_head_dim
    by_head = theirs["in_proj_qkvz.weight"].unflatten(0, (heads, -1))
    parts = by_head.split((config.linear_key_head_dim, config.linear_key_head_dim, wide, wide), dim=1)
    scalars = theirs["in_proj_ba.weight"].unflatten(0, (heads, -1)).split((values, values), dim=1)
    fused = torch.cat([part.flatten(0, 1) for part in (*parts, *scalars)])
    same = ("conv1d.weight", "dt_bias", "A_log", "out_proj.weight")
    return {
        "self_attention.in_proj.weight": fused,
        "self_attention.out_norm.weight": theirs["norm.weight"],
        **{f"self_attention.{name}": theirs[name] for name in same},
    }


LATENTS = (
    ("linear_q_proj", "q_proj"),
    ("linear_q_down_proj", "q_a_proj"),
    ("q_layernorm", "q_a_layernorm"),
    ("linear_q_up_proj", "q_b_proj"),
    ("linear_kv_down_proj", "kv_a_proj_with_mqa"),
    ("kv_layernorm", "kv_a_layernorm"),
    ("linear_kv_up_proj", "kv_b_proj"),
)


def _attention(theirs: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    groups = config.num_key_value_heads
    ours = {
        "input_layernorm.weight": theirs["input_layernorm.weight"],
        "pre_mlp_layernorm.weight": theirs["post_attention_layernorm.weight"],
        "self_attention.linear_proj.weight": theirs.get("self_attn.o_proj.weight"),
    }
    if "pre_feedforward_layernorm.weight" in theirs:
        ours["pre_mlp_layernorm.weight"] = theirs["pre_feedforward_layernorm.weight"]
        ours["post_self_attn_layernorm.weight"] = theirs["post_attention_layernorm.weight"]
        ours["post_mlp_layernorm.weight"] = theirs["post_feedforward_layernorm.weight"]
    if "post_self_attn_layernorm.weight" in theirs:
        ours["post_self_attn_layernorm.weight"] = theirs["post_self_attn_layernorm.weight"]
        ours["post_mlp_layernorm.weight"] = theirs["post_mlp_layernorm.weight"]
    if "self_attn.kv_a_proj_with_mqa.weight" in theirs:
        names = {f"self_attention.{name}.weight": f"self_attn.{published}.weight" for name, published in LATENTS}
        return ours | {name: theirs[published] for name, published in names.items() if published in theirs}
    if "linear_attn.in_proj_qkvz.weight" in theirs:
        del ours["self_attention.linear_proj.weight"]
        return ours | _delta_net(_below(theirs, "linear_attn."), config)
    if "self_attn.qkv_proj.weight" in theirs:
        head = config.hidden_size // config.num_attention_heads
        sizes = [heads * head for heads in (config.num_attention_heads, groups, groups)]
        parts = theirs["self_attn.qkv_proj.weight"].split(sizes)
        theirs |= {f"self_attn.{x}_proj.weight": part for x, part in zip("qkv", parts, strict=True)}
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in theirs:
            parts = [theirs[f"self_attn.{x}_proj.{kind}"] for x in "qkv"]
            by_group = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
            if config.model_type == "qwen3_next":  # gates follow the queries of their group
                queries_gates = by_group[0].unflatten(1, (-1, 2, config.head_dim))
                by_group[0] = queries_gates.transpose(1, 2).flatten(1, 3)
            ours[f"self_attention.linear_qkv.{kind}"] = torch.cat(by_group, 1).flatten(0, 1)
    if "self_attn.o_proj.bias" in theirs:
        ours["self_attention.linear_proj.bias"] = theirs["self_attn.o_proj.bias"]
    if "self_attn.sinks" in theirs:
        ours["self_attention.core_attention.softmax_offset"] = theirs["self_attn.sinks"]
    for x in "qk":
        if f"self_attn.{x}_norm.weight" in theirs:
            ours[f"self_attention.{x}_layernorm.weight"] = theirs[f"self_attn.{x}_norm.weight"]
    return ours


def _stacked_experts(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-OSS's experts: matrices transposed, gate and up in turn."""
    ours = {f"mlp.router.{kind}": theirs[f"mlp.router.{kind}"] for kind in ("weight", "bias")}
    for published, name in (("gate_up_proj", "linear_fc1"), ("down_proj", "linear_fc2")):
        for suffix, kind in (("", "weight"), ("_bias", "bias")):
            for expert, tensor in enumerate(theirs[f"mlp.experts.{published}{suffix}"]):
                upright = torch.cat((tensor[..., ::2], tensor[..., 1::2]), -1) if published[0] == "g" else tensor
                ours[f"mlp.experts.local_experts.{expert}.{name}.{kind}"] = upright.T if kind == "weight" else upright
    return ours


def _feed_forward(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {}
    for kind in ("weight", "bias"):
        if f"mlp.gate_proj.{kind}" in theirs:
            ours[f"mlp.linear_fc1.{kind}"] = torch.cat([theirs[f"mlp.{x}_proj.{kind}"] for x in ("gate", "up")])
            ours[f"mlp.linear_fc2.{kind}"] = theirs[f"mlp.down_proj.{kind}"]
    if "mlp.gate_up_proj.weight" in theirs:
        ours["mlp.linear_fc1.weight"] = theirs["mlp.gate_up_proj.weight"]
        ours["mlp.linear_fc2.weight"] = theirs["mlp.down_proj.weight"]
    if "mlp.experts.gate_up_proj_bias" in theirs:
        ours |= _stacked_experts(theirs)
    if "mlp.gate.weight" in theirs:
        ours["mlp.router.weight"] = theirs["mlp.gate.weight"]
        for expert, (gate_up, down) in enumerate(
            zip(theirs["mlp.experts.gate_up_proj"], theirs["mlp.experts.down_proj"], strict=True)
        ):
            ours[f"mlp.experts.local_experts.{expert}.linear_fc1.weight"] = gate_up
            ours[f"mlp.experts.local_experts.{expert}.linear_fc2.weight"] = down
    if "shortcut.router.classifier.weight" in theirs:
        ours["shortcut.router.weight"] = theirs["shortcut.router.classifier.weight"]
        gates, downs = theirs["shortcut.experts.gate_up_proj"], theirs["shortcut.experts.down_proj"]
        for expert, down in enumerate(downs):  # those behind give the token back
            ours[f"shortcut.experts.local_experts.{expert}.linear_fc1.weight"] = gates[expert]
            ours[f"shortcut.experts.local_experts.{expert}.linear_fc2.weight"] = down
    shared = _below(theirs, "mlp.shared_experts.") or _below(theirs, "mlp.shared_expert.")
    if shared:
        fused = torch.cat([shared["gate_proj.weight"], shared["up_proj.weight"]])
        ours["mlp.shared_experts.linear_fc1.weight"] = fused
        ours["mlp.shared_experts.linear_fc2.weight"] = shared["down_proj.weight"]
    if "mlp.shared_expert_gate.weight" in theirs:
        ours["mlp.shared_experts.gate_weight"] = theirs["mlp.shared_expert_gate.weight"]
    return ours
