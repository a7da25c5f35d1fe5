"""What a job keeps in memory: dtypes, states, and what is computed again."""

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, degree, many, real
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Precision:
    """Dtypes of what a rank holds.

    Attributes:
        params: Of weights and activations.
        grads: Of accumulation and reduction; a half type must be that of ``params``.
        masters: How the optimizer keeps fp32 weights of half-precision ones: apart (``fp32``), or as the 16 low bits
            beside the bf16 weight (``low_bits``; MindSpeed's reuse-fp32-param).
        moments: Of Adam's two moments (``bf16``: MindSpeed's o2-optimizer).
    """

    params: Literal["bf16", "fp16", "fp32"] = "bf16"
    grads: Literal["bf16", "fp16", "fp32"] = "fp32"
    masters: Literal["fp32", "low_bits"] = "fp32"
    moments: Literal["fp32", "bf16"] = "fp32"
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.grads not in ("fp32", self.params):
            yield Problem("grads", self.grads, f"must be fp32 or that of params={self.params}")
        if self.masters == "low_bits" and self.params != "bf16":
            yield Problem("masters", "low_bits", f"are those of bf16 weights, not of params={self.params}", "use fp32")
        if self.moments == "bf16" and self.params != "bf16":
            yield Problem("moments", "bf16", f"go with bf16 weights, not with params={self.params}", "use fp32")


Part: TypeAlias = Literal["core_attn", "mlp", "moe", "layernorm", "activation", "dispatch", "mla_up_proj"]
"""Parts of a layer that a backward can compute again.

``activation`` is the output of the feed-forward's activation, ``dispatch`` the tokens sent to experts, ``mla_up_proj``
the queries, keys and values that latent attention makes of its latents.
"""


@frozen(kw_only=True)
class SelectiveRecompute:
    """Recompute only these parts of each layer, or of the first ``num_layers`` of each stage."""

    kind: ClassVar[str] = "selective"
    modules: tuple[Part, ...] = many(("core_attn",))
    num_layers: int | None = at_least(1, default=None)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class FullRecompute:
    """Recompute whole layers.

    Attributes:
        method: Every ``num_layers`` together (uniform), or the first so many (block).
        num_layers: See ``method``.
        per: What ``num_layers`` counts the first layers of (block): a stage, or a pipeline rank, whose stages recompute
            one layer after the other in turn.
        stage_layers: Layers of each stage in model order, instead of one number for all (block).
        modules: Parts recomputed in the layers that are not recomputed whole.
    """

    kind: ClassVar[str] = "full"
    method: Literal["uniform", "block"] = "uniform"
    num_layers: int = degree()
    per: Literal["stage", "rank"] = "stage"
    stage_layers: tuple[int, ...] | None = many(None)
    modules: tuple[Part, ...] = many()
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        for name in ("per", "stage_layers", "modules"):
            value = getattr(self, name)
            if self.method == "uniform" and value not in ("stage", None, ()):
                yield Problem(name, value, "goes with method='block', which leaves layers as they are")
        if self.stage_layers is not None and self.per == "rank":
            yield Problem("stage_layers", self.stage_layers, "excludes per='rank'", "keep one of the two")


@frozen(kw_only=True)
class Memory:
    """What is kept, recomputed, sharded or moved to the host to fit.

    Attributes:
        recompute: What the backward computes again.
        recompute_when: Within the backward; ahead of it, while its gradient is on the way (``advance``); or in waits of
            the schedule and only what exceeds the ``pp*vpp`` activations that 1F1B would hold (``bubble``).
        distributed_optimizer: Shard the optimizer's state over dp and cp (ZeRO-1).
        swap_optimizer: Keep masters and moments on the host, and bring a part of them at a time.
        swap_attention: Keep what attention and the layer's norms save on the host until their backward.
        plain: What is computed by plain tensor operations, which keep more than a fused kernel: ``attention`` a weight
            for every pair of positions, ``norm`` an fp32 input, ``activation`` both halves of a gated one apart,
            ``alibi`` linear biases of every pair of positions for a fused attention.
        pads_values: Latent attention's kernel takes values as wide as keys, and gives an output as wide.
        loss: How the loss makes its softmax: in the fp32 logits (``in_place``, Megatron-core), or beside them
            (``copied``, MindSpeed before 2.2).
        loss_chunk: Tokens whose logits exist at a time, computed again in the backward; None takes all at once.
        fused_accumulation: Let the products of weight gradients add to the sums over microbatches themselves.
        grouped_experts: The weights of a rank's experts are one tensor a layer, which the optimizer takes whole.
        moe_balance: Tokens of the busiest expert parallel rank over the mean; 1.0 is perfect balance.
    """

    recompute: SelectiveRecompute | FullRecompute | None = None
    recompute_when: Literal["backward", "advance", "bubble"] = "backward"
    distributed_optimizer: bool = True
    swap_optimizer: bool = False
    swap_attention: bool = False
    plain: tuple[Literal["attention", "norm", "activation", "alibi"], ...] = many()
    pads_values: bool = False
    loss: Literal["in_place", "copied"] = "in_place"
    loss_chunk: int | None = at_least(1, default=None)
    fused_accumulation: bool = False
    grouped_experts: bool = False
    moe_balance: float = real(1.0, minimum=1.0)
    __attrs_post_init__ = check_spec
