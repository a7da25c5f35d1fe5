"""A bare Megatron-core training loop, to see that it runs inside the bridge and what it computes there."""

from typing import Any

from tests.let_go import megatron_models

SEQ, VOCAB, MBS = 16, 64, 2


def build(*, tp: int = 1, pp: int = 1, ep: int = 1, bf16: bool = False, **changes: Any) -> tuple[Any, Any]:
    """A four-layer model (wrapped for data parallelism) and its optimizer; the same weights in every layout."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import Float16Module

    distributed_optimizer, dropout = changes.pop("distributed_optimizer", False), changes.pop("dropout", 0.0)
    parallel_state.initialize_model_parallel(tp, pp, expert_model_parallel_size=ep, create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(7)
    config = TransformerConfig(
        num_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=64,
        use_cpu_initialization=True,
        attention_dropout=dropout,
        hidden_dropout=dropout,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        gradient_accumulation_fusion=False,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        pipeline_dtype=torch.bfloat16 if bf16 else torch.float32,
        **changes,
    )
    model: Any = GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=config.num_moe_experts, normalization="RMSNorm"),
        vocab_size=VOCAB,
        max_sequence_length=SEQ,
        position_embedding_type="rope",
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    fill(model, tp=tp, pp=pp, ep=ep, num_experts=config.num_moe_experts or 0)
    if bf16:
        model = Float16Module(config, model)
    model = DistributedDataParallel(
        config, DistributedDataParallelConfig(use_distributed_optimizer=distributed_optimizer), model
    )
    config.finalize_model_grads_func = finalize_model_grads
    options = OptimizerConfig(
        optimizer="adam",
        lr=1e-2,
        bf16=bf16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=distributed_optimizer,
        clip_grad=1.0,
    )
    return model, get_megatron_optimizer(options, [model], use_gloo_process_groups=False)


def fill(model: Any, *, tp: int, pp: int, ep: int, num_experts: int) -> None:
    """Give every parameter its slice of a tensor that its global name alone decides."""
    import torch
    from megatron.core import parallel_state

    first = parallel_state.get_pipeline_model_parallel_rank() * (4 // pp)
    first_expert = parallel_state.get_expert_model_parallel_rank() * (num_experts // ep)
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if words[:2] == ["decoder", "layers"]:
            words[2] = str(int(words[2]) + first)
        if "local_experts" in words:
            words[words.index("local_experts") + 1] = str(int(words[words.index("local_experts") + 1]) + first_expert)
        shape = list(parameter.shape)
        dim = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
        generator = torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(".".join(words))) % 2**31)
        if dim is None or "experts" in words:
            whole = torch.randn(shape, generator=generator)
        else:
            shape[dim] *= tp
            whole = torch.randn(shape, generator=generator)
            parts = whole.chunk(2, dim) if "linear_fc1" in words else (whole,)
            rank = parallel_state.get_tensor_model_parallel_rank()
            whole = torch.cat([part.chunk(tp, dim)[rank] for part in parts], dim)
        scaled = 1 + 0.1 * whole if "layernorm" in name else 0.1 * whole
        parameter.data.copy_(scaled)


def step(model: Any, optimizer: Any) -> tuple[float, float]:
    """One step over four microbatches; the mean loss over them (nan off the last stage) and the gradient norm."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(0, VOCAB, (MBS, SEQ + 1), generator=generator) for _ in range(4)]
    dp, dp_rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    mask = torch.triu(torch.ones(1, 1, SEQ, SEQ, dtype=torch.bool), 1)

    def forward(batches: Any, chunk: Any) -> Any:
        tokens = next(batches)
        positions = torch.arange(SEQ).expand(MBS, SEQ)
        losses = chunk(tokens[:, :-1].contiguous(), positions, mask, labels=tokens[:, 1:].contiguous())
        return losses, lambda output: (output.mean(), {"loss": output.detach().mean()})

    model.zero_grad_buffer()
    optimizer.zero_grad()
    mine = samples[dp_rank::dp]
    results = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(mine),
        model=model,
        num_microbatches=len(mine),
        seq_length=SEQ,
        micro_batch_size=MBS,
        forward_only=False,
    )
    _, norm, _ = optimizer.step()
    loss = torch.stack([result["loss"] for result in results]).mean() if results else torch.tensor(float("nan"))
    if results and dp > 1:
        torch.distributed.all_reduce(loss, group=parallel_state.get_data_parallel_group())
        loss /= dp
    return float(loss), float(norm)


def train(steps: int, options: dict[str, Any]) -> list[tuple[float, float]]:
    """Losses and gradient norms of the first steps of a layout, inside the cpu's bridge."""
    from ridgeline.kernels.device import open_device

    with open_device("cpu").bridge(), megatron_models():
        model, optimizer = build(**options)
        return [step(model, optimizer) for _ in range(steps)]


def train_twice(steps: int, options: dict[str, Any]) -> bool:
    """Whether leaving the bridge after each step and entering it again changes nothing."""
    from megatron.core import parallel_state

    from ridgeline.kernels.device import open_device

    whole = train(steps, options)
    parallel_state.destroy_model_parallel()
    device = open_device("cpu")
    with device.bridge():
        model, optimizer = build(**options)
    parts = []
    for _ in range(steps):
        with device.bridge(), device.bridge():
            parts.append(step(model, optimizer))
    return whole == parts


def save(folder: str, options: dict[str, Any], asynchronously: bool) -> list[tuple[float, float]]:
    """Save a fresh model with Megatron-core's distributed checkpointing; then two steps of it."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

    from ridgeline.kernels.device import open_device

    with open_device("cpu").bridge(), megatron_models():
        model, optimizer = build(**options)
        sharded = {"model": model.module.sharded_state_dict(metadata=metadata())}
        request = dist_checkpointing.save(sharded, folder, async_sharded_save=asynchronously)
        if asynchronously:
            queue = AsyncCallsQueue()
            queue.schedule_async_request(request)
            queue.maybe_finalize_async_calls(blocking=True)
            queue.close()
        return [step(model, optimizer) for _ in range(2)]


def load(folder: str, options: dict[str, Any]) -> list[tuple[float, float]]:
    """Load such a checkpoint into a model of any layout, whose own weights were others; then two steps of it."""
    import torch
    from megatron.core import dist_checkpointing

    from ridgeline.kernels.device import open_device

    with open_device("cpu").bridge(), megatron_models():
        model, optimizer = build(**options)
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 7.0)
        loaded = dist_checkpointing.load({"model": model.module.sharded_state_dict(metadata=metadata())}, folder)
        model.module.load_state_dict(loaded["model"])
        return [step(model, optimizer) for _ in range(2)]


def metadata() -> dict[str, Any]:
    from megatron.core import parallel_state

    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def train_and_log(steps: int, options: dict[str, Any]) -> tuple[list[tuple[float, float]], list[str]]:
    """The steps of a layout, and what Megatron-core's random module logged meanwhile."""
    import logging

    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("megatron.core.tensor_parallel.random")
    logger.addHandler(handler)
    try:
        return train(steps, options), records
    finally:
        logger.removeHandler(handler)
