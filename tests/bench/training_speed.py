"""A training step of ours against Megatron-core's own modules driven by a bare loop, in one process."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import ridgeline as rl
from tests.bench.pairs import Comparison, compare

BOUND = 1.05
MICROBATCHES, VOCAB = 4, 4096


def job_of(*, bf16: bool) -> rl.Job:
    """A dense model large enough that arithmetic, not Python, takes the time; a CPU without bf16 gets less of it."""
    seq_len, mbs = (64, 1) if bf16 else (256, 2)
    attention = rl.Attention(heads=8, kv_heads=4, head_dim=64)
    block = rl.Block(mixer=attention, feed_forward=rl.Mlp(ffn_hidden=1408))
    model = rl.ModelSpec(vocab_size=VOCAB, hidden=512, max_position=seq_len, blocks=(rl.Repeat(block=block, count=4),))
    return rl.Job(
        model=model,
        cluster=rl.cluster_preset("cpu"),
        batch=rl.Batch(seq_len=seq_len, mbs=mbs, gbs=mbs * MICROBATCHES),
        precision=rl.Precision(params="bf16" if bf16 else "fp32"),
    )


def bare_step(job: rl.Job, batches: list[Any]) -> Callable[[], None]:
    """One step as a script written straight on Megatron-core does it."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import Float16Module

    attention, mlp = job.model.layers()[0].mixer, job.model.layers()[0].feed_forward
    assert isinstance(attention, rl.Attention)
    bf16, seq_len = job.precision.params == "bf16", job.batch.seq_len
    config = TransformerConfig(
        num_layers=job.model.num_layers,
        hidden_size=job.model.hidden,
        num_attention_heads=attention.heads,
        num_query_groups=attention.kv_heads,
        ffn_hidden_size=mlp.ffn_hidden,
        use_cpu_initialization=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        gradient_accumulation_fusion=False,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    model: Any = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=job.model.vocab_size,
        max_sequence_length=seq_len,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=job.model.tied_embeddings,
    )
    if bf16:
        model = Float16Module(config, model)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(use_distributed_optimizer=True), model)
    config.finalize_model_grads_func = finalize_model_grads
    options = OptimizerConfig(
        optimizer="adam",
        lr=1e-4,
        bf16=bf16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=True,
        clip_grad=1.0,
    )
    optimizer = get_megatron_optimizer(options, [model], use_gloo_process_groups=False)
    mask = torch.triu(torch.ones(1, 1, seq_len, seq_len, dtype=torch.bool), 1)

    def forward_step(iterator: Any, model: Any) -> tuple[Any, Any]:
        batch = next(iterator)
        output = model(batch.tokens, batch.position_ids, mask, labels=batch.labels)

        def loss(losses: Any) -> tuple[Any, dict[str, Any]]:
            mean = (losses.float() * batch.loss_mask).sum() / batch.loss_mask.sum()
            return mean, {"loss": mean.detach()}

        return output, loss

    def step() -> None:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=model,
            num_microbatches=MICROBATCHES,
            seq_length=seq_len,
            micro_batch_size=job.batch.mbs,
            forward_only=False,
        )
        optimizer.step()
        float(sum(report["loss"] for report in reports))  # a script prints its loss

    return step


def measure(*, bf16: bool, pairs: int) -> Comparison:
    """Both in one process, after the same warm-up."""
    from types import SimpleNamespace

    import torch
    from torch import distributed

    from ridgeline.kernels.device import open_device
    from ridgeline.models.runtime.build import build
    from ridgeline.models.runtime.step import train_step

    torch.manual_seed(1)
    job = job_of(bf16=bf16)
    mbs, seq_len = job.batch.mbs, job.batch.seq_len
    batches = []
    for _ in range(MICROBATCHES):
        text = torch.randint(0, VOCAB, (mbs, seq_len + 1))
        positions = torch.arange(seq_len).expand(mbs, -1)
        ones = torch.ones(mbs, seq_len)
        parts = {"tokens": text[:, :-1].contiguous(), "labels": text[:, 1:].contiguous(), "loss_mask": ones}
        batches.append(SimpleNamespace(**parts, position_ids=positions, cu_seqlens=None))
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        with build(rl.lower(rl.plan(job), rank=0), open_device("cpu")) as built:
            bare = bare_step(job, batches)
            result = compare(bare, lambda: train_step(built, batches, step=0), pairs=pairs, warmup=3)
        distributed.destroy_process_group()
    return result


def main() -> int:
    ratios = []
    for bf16 in (False, True):
        result = measure(bf16=bf16, pairs=20)
        ratios.append(result.ratio)
        print(
            f"step of Megatron-core's modules and of ours, {'bf16' if bf16 else 'fp32'}: {result}, at most {BOUND}",
            flush=True,
        )
    return int(max(ratios) > BOUND)


if __name__ == "__main__":
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    sys.exit(main())
