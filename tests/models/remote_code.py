"""Models whose code was published beside their weights, computed in float64 from what their configs and papers say.

Shares no code with what it judges. Legend: ``b`` = samples, ``s`` = sequence, ``n`` = heads, ``d`` = head_dim.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Part = Callable[[torch.Tensor], torch.Tensor]


def logits_of(config: Config, tensors: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """The logits (b, s, vocabulary) of published tensors, by the model type of their config."""
    return FORWARDS[config["model_type"]](config, tensors, tokens)


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def turned(x_bsnd: torch.Tensor, base: float, *, pairs: bool = False) -> torch.Tensor:
    """Rotary positions by complex numbers: dims i and i + d/2 make one, or (``pairs``) neighbours."""
    s, d = x_bsnd.shape[1], x_bsnd.shape[-1]
    angles = torch.arange(s)[:, None] * base ** (-torch.arange(0, d, 2).double() / d)
    real, imaginary = (x_bsnd[..., 0::2], x_bsnd[..., 1::2]) if pairs else x_bsnd.chunk(2, dim=-1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    parts = (turned.real, turned.imag)
    return torch.stack(parts, -1).flatten(-2) if pairs else torch.cat(parts, -1)


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor | None = None, cap: float = math.inf
) -> torch.Tensor:
    """Causal attention of (b, s, n, d), keys and values shared by runs of heads; (b, s, n*d)."""
    s, repeat = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeat, dim=2) for x in (k, v))
    scores = torch.einsum("bqnd,bknd->bnqk", q, k) / math.sqrt(q.shape[-1])
    if cap < math.inf:
        scores = cap * torch.tanh(scores / cap)
    if slopes is not None:
        scores = scores + slopes[:, None, None] * torch.arange(s)
    hidden = torch.ones(s, s, dtype=torch.bool).triu(1)
    return torch.einsum("bnqk,bknd->bqnd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).flatten(2)


def swiglu(x: torch.Tensor, w: Tensors, at: str) -> torch.Tensor:
    """A gated MLP under the names of Llama's."""
    gate, up, down = (w[at + f"{name}_proj.weight"].T for name in ("gate", "up", "down"))
    return (functional.silu(x @ gate) * (x @ up)) @ down


def of_the_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Each token's ``count`` highest scores where they are, all others 0."""
    worst = scores.sort(dim=-1, descending=True).values[..., count - 1, None]
    return torch.where(scores >= worst, scores, 0.0)


def decoder(x: torch.Tensor, parts: list[Part], scale: float = 1.0) -> torch.Tensor:
    for part in parts:
        x = x + scale * part(x)
    return x


def llama(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Of every family with Llama's names: Aquila, Baichuan, InternLM and MiniCPM."""
    heads, eps, base = c["num_attention_heads"], c["rms_norm_eps"], c.get("rope_theta", 10000.0)
    base = (c.get("rotary") or {}).get("base", base)
    alibi = "model_max_length" in c and "max_position_embeddings" not in c
    slopes = torch.tensor([2.0 ** (-8.0 * (n + 1) / heads) for n in range(heads)]).double() if alibi else None

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "input_layernorm.weight"], eps)
        if at + "self_attn.W_pack.weight" in w:
            parts = linear(x, at + "self_attn.W_pack").chunk(3, dim=-1)
        else:
            parts = tuple(linear(x, at + f"self_attn.{name}_proj") for name in "qkv")
        q, k, v = (part.unflatten(-1, (-1, c["hidden_size"] // heads)) for part in parts)
        q, k = (q, k) if alibi else (turned(q, base), turned(k, base))
        return linear(attended(q, k, v, slopes), at + "self_attn.o_proj")

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "post_attention_layernorm.weight"], eps)
        if c.get("num_experts"):  # MiniCPM
            weights = of_the_best(linear(x, at + "mlp.gate").softmax(-1), c["num_experts_per_tok"])
            experts = [expert(x, at + f"mlp.experts.{index}.w") for index in range(c["num_experts"])]
            return (torch.stack(experts, -1) * (weights / weights.sum(-1, keepdim=True))[..., None, :]).sum(-1)
        return linear(
            functional.silu(linear(x, at + "mlp.gate_proj")) * linear(x, at + "mlp.up_proj"), at + "mlp.down_proj"
        )

    def expert(x: torch.Tensor, at: str) -> torch.Tensor:
        return linear(functional.silu(linear(x, at + "1")) * linear(x, at + "3"), at + "2")

    layers = [f"model.layers.{layer}." for layer in range(c["num_hidden_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, mlp)]
    scale = c["scale_depth"] / math.sqrt(len(layers)) if "scale_depth" in c else 1.0
    x = decoder(w["model.embed_tokens.weight"][tokens] * c.get("scale_emb", 1.0), parts, scale)
    head = w["model.embed_tokens.weight"] if c.get("tie_word_embeddings") else w["lm_head.weight"]
    if "z_loss_weight" in c:  # Baichuan 2
        head = head / head.norm(dim=1, keepdim=True)
    x = rms(x, w["model.norm.weight"], eps) / (c["hidden_size"] / c.get("dim_model_base", c["hidden_size"]))
    return x @ head.T


def internlm2(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Each key-value head's queries, its key and its value lie one after the other in ``wqkv``."""
    heads, groups, eps = c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "attention_norm.weight"], eps) @ w[at + "attention.wqkv.weight"].T
        x = x.unflatten(-1, (groups, heads // groups + 2, c["hidden_size"] // heads))
        q, k, v = x[..., :-2, :].flatten(2, 3), x[..., -2, :], x[..., -1, :]
        return attended(turned(q, c["rope_theta"]), turned(k, c["rope_theta"]), v) @ w[at + "attention.wo.weight"].T

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "ffn_norm.weight"], eps)
        w1, w2, w3 = (w[at + f"feed_forward.w{index}.weight"].T for index in (1, 2, 3))
        return (functional.silu(x @ w1) * (x @ w3)) @ w2

    layers = [f"model.layers.{layer}." for layer in range(c["num_hidden_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, mlp)]
    x = decoder(w["model.tok_embeddings.weight"][tokens], parts)
    return rms(x, w["model.norm.weight"], eps) @ w["output.weight"].T


def chatglm(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """The first half of each head turns in neighbours, the other stays."""
    heads, groups, d = c["num_attention_heads"], c["multi_query_group_num"], c["kv_channels"]
    eps, base = c["layernorm_epsilon"], 10000.0 * c.get("rope_ratio", 1)

    def half_turned(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((turned(x[..., : d // 2], base, pairs=True), x[..., d // 2 :]), -1)

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "input_layernorm.weight"], eps)
        name = at + "self_attention.query_key_value."
        x = functional.linear(x, w[name + "weight"], w[name + "bias"])
        q, k, v = (x.unflatten(-1, (-1, d)) for x in x.split((heads * d, groups * d, groups * d), dim=-1))
        return attended(half_turned(q), half_turned(k), v) @ w[at + "self_attention.dense.weight"].T

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "post_attention_layernorm.weight"], eps) @ w[at + "mlp.dense_h_to_4h.weight"].T
        gate, up = x.chunk(2, dim=-1)
        return (functional.silu(gate) * up) @ w[at + "mlp.dense_4h_to_h.weight"].T

    layers = [f"transformer.encoder.layers.{layer}." for layer in range(c["num_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, mlp)]
    x = decoder(w["transformer.embedding.word_embeddings.weight"][tokens], parts)
    return rms(x, w["transformer.encoder.final_layernorm.weight"], eps) @ w["transformer.output_layer.weight"].T


def qwen(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """``w2`` makes the gate, ``w1`` what it lets through."""
    eps = c["layer_norm_epsilon"]

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "ln_1.weight"], eps)
        x = functional.linear(x, w[at + "attn.c_attn.weight"], w[at + "attn.c_attn.bias"])
        q, k, v = (part.unflatten(-1, (-1, c["kv_channels"])) for part in x.chunk(3, dim=-1))
        return attended(turned(q, 10000.0), turned(k, 10000.0), v) @ w[at + "attn.c_proj.weight"].T

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "ln_2.weight"], eps)
        through, gate = (x @ w[at + f"mlp.w{index}.weight"].T for index in (1, 2))
        return (through * functional.silu(gate)) @ w[at + "mlp.c_proj.weight"].T

    layers = [f"transformer.h.{layer}." for layer in range(c["num_hidden_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, mlp)]
    x = decoder(w["transformer.wte.weight"][tokens], parts)
    return rms(x, w["transformer.ln_f.weight"], eps) @ w["lm_head.weight"].T


def plm(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Keys and values drawn up from one latent of each token, whose norm has an epsilon of its own."""
    eps, base, rank, turning = c["rms_norm_eps"], c["rope_theta"], c["kv_lora_rank"], c["qk_rope_head_dim"]

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "input_layernorm.weight"], eps)
        at += "self_attn."
        q = (x @ w[at + "q_proj.weight"].T).unflatten(-1, (c["num_attention_heads"], -1))
        latent, turned_key = (x @ w[at + "kv_a_proj_with_mqa.weight"].T).split((rank, turning), dim=-1)
        kv = rms(latent, w[at + "kv_a_layernorm.weight"], 1e-6) @ w[at + "kv_b_proj.weight"].T
        k, v = kv.unflatten(-1, (q.shape[2], -1)).split((c["qk_nope_head_dim"], c["v_head_dim"]), dim=-1)
        plain, own = q.split((c["qk_nope_head_dim"], turning), dim=-1)
        shared = turned(turned_key[:, :, None], base, pairs=True).expand_as(own)
        q, k = torch.cat((plain, turned(own, base, pairs=True)), -1), torch.cat((k, shared), -1)
        return attended(q, k, v) @ w[at + "o_proj.weight"].T

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "post_attention_layernorm.weight"], eps) @ w[at + "mlp.up_proj.weight"].T
        return x.relu().square() @ w[at + "mlp.down_proj.weight"].T

    layers = [f"model.layers.{layer}." for layer in range(c["num_hidden_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, mlp)]
    x = decoder(w["model.embed_tokens.weight"][tokens], parts)
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight"].T


def bailing_moe(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Half of each head turns; experts of the best groups by their two best, chosen by biased scores."""
    d, eps = c["head_dim"], c["rms_norm_eps"]
    sizes = [count * d for count in (c["num_attention_heads"], *(c["num_key_value_heads"],) * 2)]
    turning = int(d * c["partial_rotary_factor"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def half_turned(x: torch.Tensor, norm: str) -> torch.Tensor:
        x = rms(x, w[norm], eps) if norm in w else x
        return torch.cat((turned(x[..., :turning], c["rope_theta"]), x[..., turning:]), -1)

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = linear(rms(x, w[at + "input_layernorm.weight"], eps), at + "attention.query_key_value")
        q, k, v = (part.unflatten(-1, (-1, d)) for part in x.split(sizes, dim=-1))
        q, k = (half_turned(x, at + f"attention.{name}_layernorm.weight") for x, name in ((q, "query"), (k, "key")))
        return linear(attended(q, k, v), at + "attention.dense")

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "post_attention_layernorm.weight"], eps)
        if at + "mlp.gate.weight" not in w:
            return swiglu(x, w, at + "mlp.")
        scores = (x @ w[at + "mlp.gate.weight"].T).sigmoid()
        biased = (scores + w[at + "mlp.gate.expert_bias"]).unflatten(-1, (c["n_group"], -1))
        by_group = biased.sort(dim=-1, descending=True).values[..., :2].sum(-1)
        worst_kept = by_group.sort(dim=-1, descending=True).values[..., c["topk_group"] - 1, None]
        biased = torch.where((by_group >= worst_kept)[..., None], biased, -torch.inf).flatten(-2)
        worst_chosen = biased.sort(dim=-1, descending=True).values[..., c["num_experts_per_tok"] - 1, None]
        weights = torch.where(biased >= worst_chosen, scores, 0.0)
        weights = c["routed_scaling_factor"] * weights / weights.sum(-1, keepdim=True)
        routed = [swiglu(x, w, at + f"mlp.experts.{expert}.") for expert in range(c["num_experts"])]
        return (torch.stack(routed, -1) * weights[..., None, :]).sum(-1) + swiglu(x, w, at + "mlp.shared_experts.")

    layers = [f"model.layers.{layer}." for layer in range(c["num_hidden_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, mlp)]
    x = decoder(w["model.word_embeddings.weight"][tokens], parts)
    return rms(x, w["model.norm.weight"], eps) @ w["lm_head.weight"].T


def hunyuan(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Keys and values of each first layer serve those after it; every layer turns and norms the keys by itself."""
    heads, eps, sharers = c["num_attention_heads"], c["rms_norm_eps"], c["cla_share_factor"]
    d = c["hidden_size"] // heads
    base = c["rope_theta"] * c["rope_scaling"]["alpha"] ** (d / (d - 2))

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "post_attention_layernorm.weight"], eps)
        if c["num_experts"] == 1:
            return swiglu(x, w, at + "mlp.")
        scores = (x @ w[at + "mlp.gate.wg.weight"].T).softmax(-1)
        best, chosen = scores.max(-1, keepdim=True)
        every = torch.stack([swiglu(x, w, at + f"mlp.experts.{index}.") for index in range(c["num_experts"])], -2)
        one = every.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1])).squeeze(-2)
        return best * one + swiglu(x, w, at + "mlp.shared_mlp.")

    x, kv = w["model.embed_tokens.weight"][tokens], ()
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed, at_heads = rms(x, w[at + "input_layernorm.weight"], eps), at + "self_attn."
        if layer % sharers == 0:
            kv = tuple(linear(normed, at_heads + f"{name}_proj").unflatten(-1, (-1, d)) for name in "kv")
        q, (k, v) = linear(normed, at_heads + "q_proj").unflatten(-1, (-1, d)), kv
        q = rms(turned(q, base), w[at_heads + "query_layernorm.weight"], eps)
        k = rms(turned(k, base), w[at_heads + "key_layernorm.weight"], eps)
        x = x + linear(attended(q, k, v), at_heads + "o_proj")
        x = x + mlp(x, at)
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight"].T


def grok(c: Config, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Norms around each part; scores scaled, then capped; the two best of all experts' probabilities, as they are."""
    eps, d = c.get("rms_norm_eps", 1e-5), c["hidden_size"] // c["num_attention_heads"]

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "pre_attn_norm.scale"], eps)
        q, k, v = ((x @ w[at + f"attn.{name}_proj.weight"].T).unflatten(-1, (-1, d)) for name in "qkv")
        q, k = (turned(x, 10000.0) for x in (q * c["attn_output_multiplier"] * math.sqrt(d), k))
        x = attended(q, k, v, cap=c["max_attn_value"]) @ w[at + "attn.o_proj.weight"].T
        return rms(x, w[at + "post_attn_norm.scale"], eps)

    def expert(x: torch.Tensor, at: str) -> torch.Tensor:
        gate, up = x @ w[at + "linear.weight"].T, x @ w[at + "linear_v.weight"].T
        return (gate * (1 + torch.erf(gate / math.sqrt(2))) / 2 * up) @ w[at + "linear_1.weight"].T

    def experts(x: torch.Tensor, at: str) -> torch.Tensor:
        x = rms(x, w[at + "pre_moe_norm.scale"], eps)
        weights = of_the_best((x @ w[at + "moe_block.gate.weight"].T).softmax(-1), c["num_experts_per_tok"])
        outputs = [expert(x, at + f"moe_block.experts.{index}.") for index in range(c["num_experts"])]
        return rms((torch.stack(outputs, -1) * weights[..., None, :]).sum(-1), w[at + "post_moe_norm.scale"], eps)

    layers = [f"model.layers.{layer}." for layer in range(c["num_hidden_layers"])]
    parts: list[Part] = [lambda x, at=at, part=part: part(x, at) for at in layers for part in (attention, experts)]
    embedding = w["model.embed_tokens.weight"]
    x = decoder(embedding[tokens] * c["embedding_multiplier_scale"], parts)
    return rms(x, w["model.norm.scale"], eps) @ embedding.T * c["output_multiplier_scale"]


FORWARDS: dict[str, Callable[[Config, Tensors, torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("aquila", "baichuan", "internlm", "minicpm"), llama),
    "hunyuan": hunyuan,
    "internlm2": internlm2,
    "bailing_moe": bailing_moe,
    "chatglm": chatglm,
    "grok-1": grok,
    "plm": plm,
    "qwen": qwen,
}
