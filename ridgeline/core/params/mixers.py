"""The parameters of attention and its kin.

Source:
    megatron-core 0.16.1, transformer/attention.py, transformer/multi_latent_attention.py (its down-projections kept
    whole on every rank, as Transformer Engine's and MindSpeed's are), experimental_attention_variant/dsa.py,
    ssm/gated_delta_net.py, ssm/mamba_mixer.py.
"""

from collections.abc import Iterator

from ridgeline.core.model import Attention, GatedDeltaNet, Indexer, LatentAttention, Mamba2, Mixer
from ridgeline.core.params.table import Param

ATTENTION = "self_attention."


def mixer_params(mixer: Mixer, hidden: int) -> Iterator[Param]:
    """The parameters of a mixer, named within its layer."""
    match mixer:
        case Attention():
            yield from _attention(mixer, hidden)
        case LatentAttention():
            yield from _latent(mixer, hidden)
        case GatedDeltaNet():
            yield from _delta_net(mixer, hidden)
        case Mamba2():
            yield from _mamba(mixer, hidden)


def _attention(mixer: Attention, hidden: int) -> Iterator[Param]:
    q_width, kv_width = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
    gates = q_width if mixer.gate == "element" else 0
    rows, name = q_width + gates + 2 * kv_width, ATTENTION + "linear_qkv"
    if mixer.shares_kv:
        rows, name = q_width + gates, ATTENTION + "linear_q"
    yield Param(f"{name}.weight", (rows, hidden), "qkv")
    if mixer.qkv_bias:
        yield Param(f"{name}.bias", (rows,), "qkv_bias")
    if mixer.gate == "head":
        yield Param(ATTENTION + "linear_gate.weight", (mixer.heads, hidden), "replicated")
    if mixer.qk_norm:
        heads = mixer.qk_norm_over == "head"
        role = "head_norm" if heads else "per_head"
        yield Param(ATTENTION + "q_layernorm.weight", (mixer.head_dim if heads else q_width,), role)
        yield Param(ATTENTION + "k_layernorm.weight", (mixer.head_dim if heads else kv_width,), role)
    if mixer.sinks:
        yield Param(ATTENTION + "core_attention.softmax_offset", (mixer.heads,), "per_head")
    yield Param(ATTENTION + "linear_proj.weight", (hidden, q_width), "out")
    if mixer.out_bias:
        yield Param(ATTENTION + "linear_proj.bias", (hidden,), "out_bias")


def _latent(mixer: LatentAttention, hidden: int) -> Iterator[Param]:
    q_width = mixer.heads * mixer.qk_head_dim
    if mixer.q_lora_rank is None:
        yield Param(ATTENTION + "linear_q_proj.weight", (q_width, hidden), "column")
    else:
        yield Param(ATTENTION + "linear_q_down_proj.weight", (mixer.q_lora_rank, hidden), "replicated")
        yield Param(ATTENTION + "linear_q_up_proj.weight", (q_width, mixer.q_lora_rank), "column")
        yield Param(ATTENTION + "q_layernorm.weight", (mixer.q_lora_rank,), "norm")
    kv_width = mixer.heads * (mixer.nope_head_dim + mixer.v_head_dim)
    kv_latent = mixer.kv_lora_rank + mixer.rope_head_dim
    yield Param(ATTENTION + "linear_kv_down_proj.weight", (kv_latent, hidden), "replicated")
    yield Param(ATTENTION + "linear_kv_up_proj.weight", (kv_width, mixer.kv_lora_rank), "column")
    yield Param(ATTENTION + "kv_layernorm.weight", (mixer.kv_lora_rank,), "norm")
    if mixer.indexer is not None and not mixer.indexer.shared and mixer.q_lora_rank is not None:
        yield from _indexer(mixer.indexer, hidden, mixer.q_lora_rank)
    yield Param(ATTENTION + "linear_proj.weight", (hidden, mixer.heads * mixer.v_head_dim), "out")


def _indexer(indexer: Indexer, hidden: int, q_lora_rank: int) -> Iterator[Param]:
    name = ATTENTION + "core_attention.indexer."
    yield Param(name + "linear_wq_b.weight", (indexer.heads * indexer.head_dim, q_lora_rank), "replicated")
    yield Param(name + "linear_wk.weight", (indexer.head_dim, hidden), "replicated")
    yield Param(name + "k_norm.weight", (indexer.head_dim,), "norm")
    yield Param(name + "k_norm.bias", (indexer.head_dim,), "norm_bias")
    yield Param(name + "linear_weights_proj.weight", (indexer.heads, hidden), "replicated")


def _delta_net(mixer: GatedDeltaNet, hidden: int) -> Iterator[Param]:
    keys, values, heads = mixer.key_width, mixer.value_width, mixer.value_heads
    parts = (keys, keys, values, values, heads, heads)  # queries, keys, values, output gates, beta, alpha
    yield Param(ATTENTION + "in_proj.weight", (sum(parts), hidden), "fused", parts=parts)
    conv = (keys, keys, values)
    yield Param(ATTENTION + "conv1d.weight", (sum(conv), 1, mixer.conv_kernel), "conv", parts=conv)
    yield Param(ATTENTION + "dt_bias", (heads,), "per_head")
    yield Param(ATTENTION + "A_log", (heads,), "per_head")
    yield Param(ATTENTION + "out_norm.weight", (mixer.value_head_dim,), "head_norm")
    yield Param(ATTENTION + "out_proj.weight", (hidden, values), "out")


def _mamba(mixer: Mamba2, hidden: int) -> Iterator[Param]:
    states = mixer.groups * mixer.state
    parts = (mixer.width, mixer.width, states, states, mixer.heads)  # z, x, B, C, dt
    conv = (mixer.width, states, states)
    yield Param("mixer.dt_bias", (mixer.heads,), "per_head")
    yield Param("mixer.A_log", (mixer.heads,), "per_head")
    yield Param("mixer.D", (mixer.heads,), "per_head")
    yield Param("mixer.in_proj.weight", (sum(parts), hidden), "fused", parts=parts)
    if mixer.bias:
        yield Param("mixer.in_proj.bias", (sum(parts),), "qkv_bias", parts=parts)
    yield Param("mixer.conv1d.weight", (sum(conv), 1, mixer.conv_kernel), "conv", parts=conv)
    if mixer.conv_bias:
        yield Param("mixer.conv1d.bias", (sum(conv),), "conv_bias", parts=conv)
    yield Param("mixer.norm.weight", (mixer.width,), "per_head")
    yield Param("mixer.out_proj.weight", (hidden, mixer.width), "out")
    if mixer.bias:
        yield Param("mixer.out_proj.bias", (hidden,), "out_bias")
