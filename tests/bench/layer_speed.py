"""Forward and backward of one layer: ours with the reference ops against Megatron-core's local spec, in one process."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import ridgeline as rl
from tests.bench.pairs import Comparison, compare

BOUND = 1.05
HIDDEN, HEADS, MBS = 512, 8, 1
SEQ_LEN: Mapping[str, int] = MappingProxyType({"fp32": 256, "bf16": 64})
"""A CPU without bf16 gets less of it."""

ATTENTION = rl.Attention(heads=HEADS, kv_heads=4, head_dim=64)
LATENT = rl.LatentAttention(
    heads=HEADS, q_lora_rank=192, kv_lora_rank=128, nope_head_dim=64, rope_head_dim=32, v_head_dim=64
)
MLP = rl.Mlp(ffn_hidden=1408)
LAYERS: Mapping[str, rl.Block] = MappingProxyType(
    {
        "dense": rl.Block(mixer=ATTENTION, feed_forward=MLP),
        "experts": rl.Block(mixer=ATTENTION, feed_forward=rl.Moe(experts=8, topk=2, ffn_hidden=704)),
        "latent attention": rl.Block(mixer=LATENT, feed_forward=MLP),
    }
)


def job_of(block: rl.Block, precision: Any) -> rl.Job:
    """A model of this layer alone."""
    seq_len = SEQ_LEN[precision]
    model = rl.ModelSpec(vocab_size=512, hidden=HIDDEN, max_position=seq_len, blocks=(rl.Repeat(block=block, count=1),))
    return rl.Job(
        model=model,
        cluster=rl.cluster_preset("cpu"),
        batch=rl.Batch(seq_len=seq_len, mbs=MBS, gbs=MBS),
        precision=rl.Precision(params=precision),
    )


def our_layer(job: rl.Job) -> Callable[[Any], Any]:
    """The layer as `ridgeline train` builds it, without the wrapper that reduces gradients."""
    import torch

    from ridgeline.kernels.runtime.load import kernels_here
    from ridgeline.models.runtime.model import build_chunk, build_config, initialize
    from ridgeline.models.runtime.sequences import Sequences, tables_of

    program = rl.lower(rl.plan(job), rank=0)
    config = build_config(program)
    chunk = build_chunk(program, 0, config, kernels_here(program.kernels, "cpu", policy="auto"))
    initialize(program, [chunk])
    layer: Any = chunk.decoder.layers[0]
    layer = layer.to(config.params_dtype)
    tables = tables_of(job.model, seq_len=job.batch.seq_len, device=torch.device("cpu"), dtype=config.params_dtype)
    return lambda x: layer(x, attention_mask=None, packed_seq_params=Sequences(tables=tables))[0]


def their_layer(job: rl.Job) -> Callable[[Any], Any]:
    """The same layer of Megatron-core's own modules, with random weights."""
    import torch
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig, multi_latent_attention
    from megatron.core.transformer.spec_utils import build_module

    block, bf16 = job.model.layers()[0], job.precision.params == "bf16"
    dtype, seq_len = torch.bfloat16 if bf16 else torch.float32, job.batch.seq_len
    latent = isinstance(block.mixer, rl.LatentAttention)
    fields: dict[str, Any] = {
        "num_layers": 1,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "use_cpu_initialization": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "gradient_accumulation_fusion": False,
        "bf16": bf16,
        "params_dtype": dtype,
    }
    moe = block.feed_forward if isinstance(block.feed_forward, rl.Moe) else None
    assert block.feed_forward is not None
    fields["ffn_hidden_size"] = block.feed_forward.ffn_hidden
    if moe is not None:
        fields |= {
            "num_moe_experts": moe.experts,
            "moe_router_topk": moe.topk,
            "moe_ffn_hidden_size": moe.ffn_hidden,
            "moe_router_dtype": "fp32",
            "moe_router_load_balancing_type": "none",
            "moe_token_dispatcher_type": "alltoall",
        }
    if isinstance(block.mixer, rl.LatentAttention):
        mixer = block.mixer
        fields |= {
            "q_lora_rank": mixer.q_lora_rank,
            "kv_lora_rank": mixer.kv_lora_rank,
            "qk_head_dim": mixer.nope_head_dim,
            "qk_pos_emb_head_dim": mixer.rope_head_dim,
            "v_head_dim": mixer.v_head_dim,
            "rope_type": "rope",
            "apply_rope_fusion": False,
        }
        config: Any = MLATransformerConfig(**fields)
        # It is True without Transformer Engine too, whose classes are then None and no second argument of isinstance.
        multi_latent_attention.HAVE_TE = False
    else:
        assert isinstance(block.mixer, rl.Attention)
        config = TransformerConfig(num_query_groups=block.mixer.kv_heads, **fields)
    spec: Any = get_gpt_layer_local_spec(
        num_experts=moe and moe.experts, multi_latent_attention=latent, normalization="RMSNorm"
    )
    if latent:
        spec.submodules.self_attention.submodules.core_attention = latent_core()
    layer: Any = build_module(spec, config=config, layer_number=1)
    layer = layer.to(dtype)
    mask = torch.triu(torch.ones(1, 1, seq_len, seq_len, dtype=torch.bool), 1)
    if latent:
        return lambda x: layer(x, attention_mask=mask)[0]
    assert isinstance(block.mixer, rl.Attention)
    angles = RotaryEmbedding(block.mixer.head_dim, rotary_percent=1.0, use_cpu_initialization=True)(seq_len)
    return lambda x: layer(x, attention_mask=mask, rotary_pos_emb=angles)[0]


def latent_core() -> type:
    """Megatron-core's local attention with values of another size than keys, which its constructor refuses."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class LatentCore(DotProductAttention):
        def __init__(self, *args: Any, k_channels: int = 0, v_channels: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition

    return LatentCore


def measure(block: rl.Block, precision: str, *, pairs: int) -> Comparison:
    """Both in one process, after the same warm-up."""
    import torch

    from ridgeline.kernels.device import open_device
    from ridgeline.parallel.runtime.groups import process_groups

    job = job_of(block, precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with ExitStack() as stack:
        stack.enter_context(open_device("cpu").bridge())
        stack.enter_context(process_groups(job.layout, world_size=1, seed=1))
        torch.manual_seed(1)
        x = torch.randn(job.batch.seq_len, MBS, HIDDEN).to(dtype).requires_grad_()

        def step_of(layer: Callable[[Any], Any]) -> Callable[[], None]:
            def step() -> None:
                output = layer(x)
                output.backward(output.detach())

            return step

        # One thread does it all, so that its own time tells more than that of a machine with other work.
        clock = time.process_time
        return compare(step_of(their_layer(job)), step_of(our_layer(job)), pairs=pairs, warmup=3, clock=clock)


def main() -> int:
    from torch import distributed

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        for name, block in LAYERS.items():
            for precision in SEQ_LEN:
                result = measure(block, precision, pairs=30)
                ratios.append(result.ratio)
                text = f"layer of Megatron-core's local spec and ours, {name}, {precision}"
                print(f"{text}: {result}, at most {BOUND}", flush=True)
        distributed.destroy_process_group()
    return int(max(ratios) > BOUND)


if __name__ == "__main__":
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    sys.exit(main())
