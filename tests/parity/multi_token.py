"""DeepSeek-V3's definition of multi-token prediction (arXiv 2412.19437, section 2.2), written out in float64.

One document of ``T`` tokens ``t`` at a time, no tensor of the code under test but its weights. Equations (21) to (25);
the order of the projection's halves is that of the published weights, embedding first, and what the paper calls the
main model's representation is what its output head reads; Step-3.5-Flash's layers read before each norm (vllm-project,
vllm/model_executor/models/step3p5_mtp.py: the norm is of the head alone).
"""

from collections.abc import Mapping

import torch
from torch import distributed
from torch.nn import functional

from ridgeline.core.job import Job
from ridgeline.core.model import Attention, Block, ModelSpec
from ridgeline.kernels.device import open_device
from ridgeline.models.program import lower
from ridgeline.models.runtime.build import build
from ridgeline.models.runtime.logits import logits
from ridgeline.models.runtime.model import named_tensors
from ridgeline.models.runtime.step import accumulate
from ridgeline.parallel.plan import plan
from tests.parity.on_ranks import Computed, Lengths, Tokens, documents, pieces

Weights = Mapping[str, torch.Tensor]


def losses_of(model: ModelSpec, weights: Weights, tokens: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """The sum of the losses of each depth over one document, the main model's first: tensors with a graph."""
    head = weights["output_layer.weight"]
    hidden = weights["embedding.word_embeddings.weight"][tokens]
    for layer in range(model.num_layers):
        hidden = _block(model, weights, f"decoder.layers.{layer}.", hidden, model.layers()[layer])
    read = _norm(hidden, weights["decoder.final_layernorm.weight"], model)
    losses = [functional.cross_entropy(read @ head.T, labels, reduction="sum")]
    embedded = weights["embedding.word_embeddings.weight"][tokens]
    for depth in range(1, model.mtp + 1):
        part, said = f"mtp.layers.{depth - 1}.", hidden if model.mtp_before_norm else read
        # Positions 1 .. T-k, each beside the token k places on.
        halves = (
            _norm(embedded[depth:], weights[part + "enorm.weight"], model),
            _norm(said[: len(tokens) - depth], weights[part + "hnorm.weight"], model),
        )
        hidden = torch.cat(halves, dim=-1) @ weights[part + "eh_proj.weight"].T
        hidden = _block(model, weights, part + "transformer_layer.", hidden, model.mtp_block or model.layers()[-1])
        read = _norm(hidden, weights[part + "final_layernorm.weight"], model)
        losses.append(functional.cross_entropy(read @ head.T, labels[depth:], reduction="sum"))
    return losses


def _block(model: ModelSpec, weights: Weights, prefix: str, x: torch.Tensor, block: Block) -> torch.Tensor:
    mixer = block.mixer
    assert isinstance(mixer, Attention)
    normed = _norm(x, weights[prefix + "input_layernorm.weight"], model)
    fused = (normed @ weights[prefix + "self_attention.linear_qkv.weight"].T).unflatten(-1, (mixer.kv_heads, -1))
    wide = fused.shape[-1] - 2 * mixer.head_dim
    query, key, value = fused.split((wide, mixer.head_dim, mixer.head_dim), dim=-1)
    query, repeats = query.unflatten(-1, (-1, mixer.head_dim)).flatten(1, 2), mixer.heads // mixer.kv_heads
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = torch.einsum("ind,jnd->nij", _turned(query, mixer.rope.base), _turned(key, mixer.rope.base))
    causal = torch.ones(len(x), len(x)).tril().bool()
    shares = (scores / mixer.head_dim**0.5).masked_fill(~causal, -torch.inf).softmax(-1)
    context = torch.einsum("nij,jnd->ind", shares, value).flatten(1)
    x = x + context @ weights[prefix + "self_attention.linear_proj.weight"].T
    normed = _norm(x, weights[prefix + "pre_mlp_layernorm.weight"], model)
    gate, up = (normed @ weights[prefix + "mlp.linear_fc1.weight"].T).chunk(2, dim=-1)
    return x + (functional.silu(gate) * up) @ weights[prefix + "mlp.linear_fc2.weight"].T


def _turned(x: torch.Tensor, base: float) -> torch.Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(len(x)).double()[:, None] * base ** (-torch.arange(half).double() / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _norm(x: torch.Tensor, weight: torch.Tensor, model: ModelSpec) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + model.norm_eps).rsqrt() * weight


def weights_of(job: Job) -> dict[str, torch.Tensor]:
    """The initial weights of a job of one rank, in float64, without padding."""
    with build(lower(plan(job), 0), open_device("cpu")) as built:
        held = [(owned.local, tensor) for owned, tensor in named_tensors(built.program, built.chunks)]
        return {p.fqn: tensor.detach().double()[: p.param.shape[0]].clone() for p, tensor in held}


def compute_masked(job: Job, lengths: Lengths, masked: int) -> tuple[Computed, tuple[float, ...]]:
    """Packed samples of documents as one microbatch, the first ``masked`` tokens without a loss; and `mtp_losses`."""
    texts = documents(lengths, job.model.vocab_size)
    tokens, labels = (torch.cat(parts).reshape(len(lengths), -1) for parts in zip(*texts, strict=True))
    positions = torch.cat([torch.arange(len(text)) for text, _ in texts]).reshape(tokens.shape)
    ends = torch.tensor([0, *(len(text) for text, _ in texts)]).cumsum(0).int()
    mask = torch.ones(tokens.shape)
    mask[0, :masked] = 0
    batch = Tokens(tokens=tokens, labels=labels, loss_mask=mask, position_ids=positions, cu_seqlens=ends)
    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        outputs = [output.numpy() for output in logits(built, [batch])]
        mean = accumulate(built, [batch])
        return Computed(mean.loss, outputs, list(pieces(built))), mean.mtp_losses
