"""Megatron-core alone: its own model, optimizer and schedules, with weights and data that do not depend on the layout.

What it shares with Ridgeline is the device bridge, without which it does not run on a CPU, and the map of which part of
a tensor a rank holds, which ``test_shards.py`` judges by Megatron-core itself.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import distributed

from ridgeline.core.job import Job
from ridgeline.core.model import Moe
from ridgeline.kernels.device import open_device
from ridgeline.parallel.of_job import mesh_of, stages_of
from ridgeline.parallel.shards import padded_vocab, plan_shards, rank_params, slices_of
from ridgeline.parallel.stages import megatron_layout
from tests.let_go import megatron_models

Record = dict[str, list[float]]


def placed(job: Job) -> Any:
    """Where a job's parameters lie when nothing of it is repaired: what ``rank_params`` reads of a plan."""
    return SimpleNamespace(mesh=mesh_of(job), stages=stages_of(job), shards=plan_shards(job.model, job.layout), job=job)


class Norm(torch.nn.LayerNorm):
    """A layer norm whose weights Megatron-core knows to be shared by tp ranks; its own stock one refuses sp."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, bias=False)
        self.weight.sequence_parallel = config.sequence_parallel


def config_fields(job: Job, *, even: bool = False) -> dict[str, Any]:
    """Megatron-core's words for a job whose attention is the same in every layer; ``even`` leaves the stages to it."""
    model, layout = job.model, job.layout
    layers = model.layers()
    attention = layers[0].mixer
    sparse = [int(isinstance(block.feed_forward, Moe)) for block in layers]
    moe = next((block.feed_forward for block in layers if isinstance(block.feed_forward, Moe)), None)
    mlp = next((block.feed_forward for block in layers if not isinstance(block.feed_forward, Moe)), None)
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden,
        "ffn_hidden_size": mlp.ffn_hidden if mlp else moe.ffn_hidden,
        "num_attention_heads": attention.heads,
        "num_query_groups": attention.kv_heads,
        "kv_channels": attention.head_dim,
        "add_qkv_bias": attention.qkv_bias,
        "qk_layernorm": attention.qk_norm,
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "pipeline_model_parallel_layout": megatron_layout(stages_of(job)) if layout.pp > 1 and not even else None,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
        "sequence_parallel": layout.sp,
        **(_expert_fields(moe, sparse) if moe else {}),
    }


def _expert_fields(moe: Moe, sparse: list[int]) -> dict[str, Any]:
    return {
        "num_moe_experts": moe.experts,
        "moe_router_topk": moe.topk,
        "moe_ffn_hidden_size": moe.ffn_hidden,
        "moe_layer_freq": sparse,
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
    }


def group_fields(job: Job) -> dict[str, Any]:
    """Arguments of ``initialize_model_parallel``."""
    layout = job.layout
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
        "create_gloo_process_groups": False,
    }


def build_chunks(planned: Any, *, rank: int, overrides: dict[str, Any], norm: bool = True) -> list[GPTModel]:
    """The model chunks of a rank, with stock modules; ``norm`` puts a norm that knows sp in the place of theirs."""
    job = planned.job
    fields = {**config_fields(job), **{k: v for k, v in overrides.items() if k != "parallel_output"}}
    config = TransformerConfig(
        **fields,
        activation_func=torch.nn.functional.silu,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
    )
    chunks = []
    for chunk in range(job.layout.vpp):
        vp_stage = chunk if job.layout.vpp > 1 else None
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=vp_stage)
        if norm:
            spec.layer_norm = Norm
            for layer in spec.layer_specs:
                layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
        chunks.append(
            GPTModel(
                config,
                spec,
                vocab_size=padded_vocab(job.model.vocab_size, job.layout),
                max_sequence_length=job.batch.seq_len,
                position_embedding_type="rope",
                pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                share_embeddings_and_output_weights=job.model.tied_embeddings,
                parallel_output=overrides.get("parallel_output", True),
                vp_stage=vp_stage,
            )
        )
    return chunks


@torch.no_grad()
def set_weights(planned: Any, chunks: list[GPTModel], rank: int) -> None:
    """Give every parameter its part of a tensor that depends on its name alone."""
    named = {(index, name): param for index, chunk in enumerate(chunks) for name, param in chunk.named_parameters()}
    for local in rank_params(planned, rank):
        generator = torch.Generator().manual_seed(zlib.crc32(local.fqn.encode()))
        whole = torch.randn(local.shard.global_shape, generator=generator)
        whole = 1 + 0.1 * whole if whole.dim() == 1 else 0.1 * whole
        boxes = [whole[tuple(slice(*side) for side in box)] for box in slices_of(local.shard, rank, planned.mesh)]
        named[local.chunk, local.name].copy_(torch.cat(boxes))


class Trainer:
    """One rank of a plain Megatron-core run."""

    def __init__(self, job: Job, *, lr: float = 1e-2, **overrides: Any) -> None:
        self.job, self.planned, self.rank = job, placed(job), distributed.get_rank()
        model_parallel_cuda_manual_seed(1)
        chunks = build_chunks(self.planned, rank=self.rank, overrides=overrides)
        set_weights(self.planned, chunks, self.rank)
        self.config = chunks[0].config
        shared = job.memory.distributed_optimizer
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=shared, grad_reduce_in_fp32=True)
        self.chunks = [DistributedDataParallel(self.config, ddp, chunk) for chunk in chunks]
        self.config.finalize_model_grads_func = finalize_model_grads
        settings = OptimizerConfig(optimizer="adam", lr=lr, use_distributed_optimizer=shared, clip_grad=0.0)
        self.optimizer = get_megatron_optimizer(settings, self.chunks, use_gloo_process_groups=False)

    def step(self, index: int) -> tuple[float, float]:
        """One update: mean loss over the last stage's microbatches (0 elsewhere), and the gradients' norm."""
        job = self.job
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        dp_rank = parallel_state.get_data_parallel_rank()
        batches = [_batch(job, index, dp_rank + job.dp * m) for m in range(job.num_microbatches)]
        several = len(self.chunks) > 1
        losses = get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=[iter(batches) for _ in self.chunks] if several else iter(batches),
            model=self.chunks if several else self.chunks[0],
            num_microbatches=len(batches),
            seq_length=job.batch.seq_len,
            micro_batch_size=job.batch.mbs,
            forward_only=False,
        )
        _, grad_norm, _ = self.optimizer.step()
        return sum(float(loss) for loss in losses) / max(1, len(losses)), float(grad_norm)


def _batch(job: Job, step: int, sample: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + sample)
    return torch.randint(0, job.model.vocab_size, (job.batch.mbs, job.batch.seq_len + 1), generator=generator)


def _forward(batches: Any, model: torch.nn.Module) -> Any:
    tokens = next(batches)
    length = tokens.shape[1] - 1
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    positions = torch.arange(length).expand(tokens.shape[0], -1)
    losses = model(tokens[:, :-1].contiguous(), positions, mask, labels=tokens[:, 1:].contiguous())
    return losses, lambda output: (output.mean(), output.detach().mean())


@contextmanager
def opened(job: Job) -> Iterator[None]:
    """What a plain Megatron-core run of a job needs; its groups are the pool's to destroy."""
    with open_device("cpu").bridge(), megatron_models():
        parallel_state.initialize_model_parallel(**group_fields(job))
        yield


def train(job: Job, steps: int, overrides: dict[str, Any]) -> Record:
    """Losses and gradient norms of a plain run, on each rank."""
    with opened(job):
        trainer = Trainer(job, **overrides)
        results = [trainer.step(index) for index in range(steps)]
        return {"loss": [loss for loss, _ in results], "grad_norm": [norm for _, norm in results]}


def train_ours(job: Job, steps: int) -> list[float]:
    """Losses of a run of Ridgeline's own."""
    from ridgeline.models.program import lower
    from ridgeline.models.runtime.build import build
    from ridgeline.parallel.plan import plan
    from tests.checkpoint.training import steps_of

    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        return [loss for loss, _ in steps_of(built, 0, steps)]


def reload_optimizer(job: Job) -> dict[str, Any]:
    """Two steps, the optimizer's state put out and in again by its own methods, two steps more.

    The moments, which travel another way upstream, are put back by hand, so that only the steps differ.
    """
    from ridgeline.checkpoint.io.optimizer import set_updates_made, slots_of

    with opened(job):
        outcome: dict[str, Any] = {}
        for name in ("uninterrupted", "loaded", "repaired"):
            trainer = Trainer(job)
            for index in range(2):
                trainer.step(index)
            if name != "uninterrupted":
                before = [
                    (slot.state, {k: v.clone() for k, v in slot.moments.items()})
                    for slot in slots_of(trainer.optimizer)
                ]
                outcome["distinct_steps_before"] = _distinct_steps(trainer)
                trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())
                outcome["distinct_steps_after_load"] = _distinct_steps(trainer)
                for slot, (_, moments) in zip(slots_of(trainer.optimizer), before, strict=True):
                    for key, value in moments.items():
                        slot.moments[key].copy_(value)
            if name == "repaired":
                set_updates_made(slots_of(trainer.optimizer), 2)
            outcome[name] = [trainer.step(index)[0] for index in range(2, 5)]
        return outcome


def _distinct_steps(trainer: Trainer) -> int:
    from ridgeline.checkpoint.io.optimizer import slots_of

    return len({id(slot.state["step"]) for slot in slots_of(trainer.optimizer)})


def save(job: Job, folder: str) -> None:
    """One step, then a checkpoint of model and optimizer by Megatron-core's own means."""
    with opened(job):
        trainer = Trainer(job)
        trainer.step(0)
        dist_checkpointing.save(_state(trainer, is_loading=False), folder)


def load_error(job: Job, folder: str) -> str:
    """What Megatron-core's own load of that checkpoint raises under another layout."""
    with opened(job):
        trainer = Trainer(job)
        trainer.step(0)  # without a step its load fails an assertion first
        try:
            loaded = dist_checkpointing.load(_state(trainer, is_loading=True), folder)
            trainer.optimizer.load_state_dict(loaded["optimizer"])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""


def _state(trainer: Trainer, *, is_loading: bool) -> dict[str, Any]:
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }
    state = {f"model{i}": chunk.module.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(trainer.chunks)}
    state["optimizer"] = trainer.optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=metadata)
    return state


def build_errors(jobs: list[Job]) -> list[str]:
    """What Megatron-core raises on the first or last rank of each job while it forms groups and builds the model."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.destroy_process_group()
    errors = []
    with open_device("cpu").bridge():
        for job in jobs:
            error = ""
            for rank in (0, job.cluster.world_size - 1):
                distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=job.cluster.world_size)
                try:
                    _build_unchecked(job)
                except (AssertionError, RuntimeError, ValueError) as caught:
                    error = error or f"{type(caught).__name__}: {caught}"
                finally:
                    parallel_state.destroy_model_parallel()
                    distributed.destroy_process_group()
            errors.append(error)
    return errors


def _build_unchecked(job: Job) -> None:
    """The groups and the model of a job as it stands, every stage of the same length."""
    parallel_state.initialize_model_parallel(**group_fields(job), order=job.layout.order)
    config = TransformerConfig(
        **{**config_fields(job, even=True), "perform_initialization": False},
        activation_func=torch.nn.functional.silu,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
    )
    for chunk in range(job.layout.vpp):
        vp_stage = chunk if job.layout.vpp > 1 else None
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=vp_stage)
        spec.layer_norm = Norm
        for layer in spec.layer_specs:
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
        with torch.device("meta"):
            GPTModel(config, spec, 128, job.batch.seq_len, position_embedding_type="rope", vp_stage=vp_stage)


def positions_of_this_rank(seq_len: int) -> list[int]:
    """Which positions of a sample Megatron-core gives a rank when all share it."""
    batch = {"tokens": torch.arange(seq_len).unsqueeze(0)}
    return get_batch_on_this_cp_rank(batch, cp_group=distributed.group.WORLD)["tokens"][0].tolist()
