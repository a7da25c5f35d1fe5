"""One model chunk as Megatron-core's GPTModel, built from a rank's program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from ridgeline.models.megatron import Fields
from ridgeline.models.program import Owned, RankProgram
from ridgeline.models.runtime.adapters import add_adapters
from ridgeline.models.runtime.config import LayerConfig
from ridgeline.models.runtime.ends import finish_ends
from ridgeline.models.runtime.initial import fill, initial_std
from ridgeline.models.runtime.kernels import Kernels
from ridgeline.models.runtime.layers import decoder_spec
from ridgeline.models.runtime.multi_token import ahead, hidden_ahead, prediction_spec, tokens_left
from ridgeline.models.runtime.norms import LaterNorm
from ridgeline.models.runtime.sequences import Sequences


class LanguageModel(GPTModel):
    """GPTModel whose loss knows that the last ``num_pads`` rows of this rank's part of the vocabulary are no tokens.

    Upstream counts them in the softmax, so that the loss would depend on the padding, and with it on tp.
    """

    head_weight: Callable[[], torch.nn.Parameter] | None = None
    """Where a tied head's embedding lies in another chunk of its rank, what gives it."""

    def __init__(self, *args: Any, num_pads: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_pads = num_pads
        if self.mtp_process and self.share_embeddings_and_output_weights:
            self.output_layer.weight = None  # the embedding stands beside it; upstream makes a second one, unused

    def shared_embedding_or_output_weight(self) -> torch.nn.Parameter:
        """What a tied head reads: the embedding of this chunk, or of another chunk of this rank."""
        return super().shared_embedding_or_output_weight() if self.head_weight is None else self.head_weight()  # pyright: ignore[reportReturnType]  upstream's hint

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The loss of each token, (b, s), from logits (s, b, vocabulary/tp)."""
        if self.num_pads:
            # Outside autograd: the softmax of minus infinity is 0, and so is the gradient it sends back.
            logits.detach()[..., -self.num_pads :] = float("-inf")
        return super().compute_language_model_loss(labels, logits)

    def _postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  upstream passes all by keyword
        self,
        hidden_states: torch.Tensor,
        *,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None,
        packed_seq_params: Sequences,
        runtime_gather_output: bool | None,
        **options: Any,
    ) -> torch.Tensor:
        """Of a chunk with multi-token prediction that trains: the losses of every depth, (1+mtp, b, s)."""
        if not self.mtp_process:
            options |= {"labels": labels, "packed_seq_params": packed_seq_params, "input_ids": input_ids}
            return super()._postprocess(hidden_states, runtime_gather_output=runtime_gather_output, **options)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None

        def head(hidden_sbh: torch.Tensor) -> torch.Tensor:
            return self.output_layer(hidden_sbh, weight=weight, runtime_gather_output=runtime_gather_output)[0]

        final = self.decoder.final_layernorm
        read = final.normed(hidden_states) if isinstance(final, LaterNorm) else hidden_states
        if labels is None:
            return head(read).transpose(0, 1).contiguous()
        losses = [self.compute_language_model_loss(labels, head(read))]
        if self.training:
            samples, size = labels.shape
            left_bs = tokens_left(packed_seq_params, samples=samples, size=size, device=labels.device)
            hidden = hidden_ahead(self, hidden_states, input_ids, left_bs, packed_seq_params)
            for depth, hidden_sbh in enumerate(hidden, start=1):
                loss = self.compute_language_model_loss(ahead(labels, depth, left_bs), head(hidden_sbh))
                losses.append(loss * (left_bs >= depth))
        return torch.stack(losses)


def build_config(program: RankProgram, **overrides: Any) -> LayerConfig:
    """Megatron-core's config out of the program's fields."""
    return LayerConfig(**{**resolved(program.transformer), **overrides})


def build_chunks(program: RankProgram, config: TransformerConfig, kernels: Kernels) -> list[LanguageModel]:
    """This rank's chunks on torch's default device, their weights not yet written."""
    chunks = [build_chunk(program, chunk, config, kernels) for chunk in range(len(program.chunks))]
    first, last = chunks[0], chunks[-1]
    if first is not last and first.pre_process and last.post_process and program.job.model.tied_embeddings:
        embedding = first.embedding.word_embeddings
        embedding.weight.shared_embedding = False  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark of copies
        last.output_layer.weight = None
        last.head_weight = lambda: embedding.weight
    return chunks


def build_chunk(program: RankProgram, chunk: int, config: TransformerConfig, kernels: Kernels) -> LanguageModel:
    """One chunk on torch's default device, its weights not yet written."""
    model, layout = program.job.model, program.job.layout
    part = program.chunks[chunk]
    built = LanguageModel(
        config=config,
        transformer_layer_spec=decoder_spec(model, part.layers, kernels),  # pyright: ignore[reportArgumentType]  upstream's hint
        vocab_size=program.padded_vocab,
        max_sequence_length=model.max_position if model.learned_positions else program.data.seq_len,
        pre_process=part.pre_process,
        post_process=part.post_process,
        share_embeddings_and_output_weights=model.tied_embeddings,
        # Attention turns queries and keys itself.
        position_embedding_type="learned_absolute" if model.learned_positions else "none",
        vp_stage=chunk if layout.chunks > 1 else None,
        mtp_block_spec=prediction_spec(model, kernels) if part.post_process else None,  # pyright: ignore[reportArgumentType]  upstream's hint
        num_pads=program.num_pads,
    )
    finish_ends(built, model, kernels)
    if program.job.adapter is not None:
        add_adapters(built, program.job.adapter)
    return built


def initialize(program: RankProgram, chunks: Sequence[torch.nn.Module]) -> None:
    """Write the initial value of every parameter of this rank."""
    model, seed = program.job.model, program.job.run.seed
    for owned, tensor in named_tensors(program, chunks):
        local = owned.local
        std = initial_std(model, local.param.role)
        fill(tensor, local.param, local.fqn, owned.boxes, norm=model.norm, seed=seed, std=std)


def mark(program: RankProgram, chunks: Sequence[torch.nn.Module]) -> None:
    """Set the marks by which Megatron-core reduces and counts gradients, before it wraps the chunks.

    ``tensor_model_parallel``: upstream sets it only where it writes the initial values itself; a tensor without it is
    left out of the norm of all gradients on every tp rank but the first.
    ``allreduce``: False sends an expert's gradient through the expert groups. Upstream does so for ep > 1 only; with
    ep=1 and etp < tp, copies on the tp ranks would drift apart. On every expert, it gives each ep the same optimizers.
    """
    for owned, tensor in named_tensors(program, chunks):
        if not hasattr(tensor, "tensor_model_parallel"):
            for split in owned.local.shard.splits:
                set_tensor_model_parallel_attributes(tensor, True, split.dim, split.blocks)
            if owned.local.expert is not None and not owned.local.shard.splits:
                # Whole on each etp rank, of which one counts it; tp ranks may hold other experts.
                if program.expert_coords.etp_rank:
                    tensor.shared = True  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark
                else:
                    set_tensor_model_parallel_attributes(tensor, True, 0, 1)
        if owned.local.param.trains:
            tensor.allreduce = owned.local.expert is None  # pyright: ignore[reportAttributeAccessIssue]  Megatron's mark


def in_precision(config: TransformerConfig, chunk: LanguageModel) -> MegatronModule:
    """The chunk behind Megatron-core's converter of inputs and outputs, where it computes in bf16."""
    return Float16Module(config, chunk) if config.bf16 else chunk


def named_tensors(program: RankProgram, chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[Owned, torch.Tensor]]:
    """Every parameter of this rank with what it is; ``chunks`` may be wrapped.

    What is moved by load instead of a gradient is a buffer in Megatron-core.
    """
    tensors = [
        {_bare(name): tensor for name, tensor in (*chunk.named_parameters(), *chunk.named_buffers())}
        for chunk in chunks
    ]
    for owned in program.params:
        yield owned, tensors[owned.local.chunk][owned.local.name]


def resolved(fields: Fields) -> dict[str, Any]:
    """Fields with what they name: dtypes, functions, lists."""
    return {name: RESOLVERS[name](value) if name in RESOLVERS else value for name, value in fields}


def _bare(name: str) -> str:
    """A parameter's name without the wrappers around its chunk."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


RESOLVERS: Mapping[str, Any] = {
    "params_dtype": _dtype,
    "pipeline_dtype": _dtype,
    "activation_func": lambda name: getattr(torch.nn.functional, name),
    "recompute_modules": _list,
    "moe_layer_freq": _list,
}
