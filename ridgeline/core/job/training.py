"""What a job trains for, and how: rates, optimizer, objectives, adapters."""

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, many, real, trait
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class ConstantLr:
    """The peak rate after warmup."""

    kind: ClassVar[str] = "constant"


@frozen(kw_only=True)
class LinearLr:
    """A straight line from the peak to ``min_lr`` at ``decay_steps`` (None: the run's last step)."""

    kind: ClassVar[str] = "linear"
    decay_steps: int | None = at_least(1, default=None)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class CosineLr:
    """Half a cosine from the peak to ``min_lr`` at ``decay_steps`` (None: the run's last step)."""

    kind: ClassVar[str] = "cosine"
    decay_steps: int | None = at_least(1, default=None)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class WsdLr:
    """Warmup, stable, decay: the peak until ``anneal_steps`` before ``decay_steps``, then down to ``min_lr``."""

    kind: ClassVar[str] = "wsd"
    anneal_steps: int = at_least(1)
    style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = "exponential"
    decay_steps: int | None = at_least(1, default=None)
    __attrs_post_init__ = check_spec


LrSchedule: TypeAlias = ConstantLr | LinearLr | CosineLr | WsdLr


@frozen(kw_only=True)
class Optimizer:
    """AdamW. Weight decay spares biases and norms. ``clip_grad`` 0 leaves gradients as they are.

    ``kernel`` is what updates a tensor: torch's own, or one of torch_npu's, which need less memory beside it.
    """

    lr: float = real(3e-4, above=0.0)
    min_lr: float = real(0.0, minimum=0.0)
    lr_schedule: LrSchedule = CosineLr()
    warmup_steps: int = at_least(0, default=0)
    weight_decay: float = real(0.1, minimum=0.0)
    beta1: float = real(0.9, minimum=0.0, maximum=1.0)
    beta2: float = real(0.95, minimum=0.0, maximum=1.0)
    eps: float = real(1e-8, above=0.0)
    clip_grad: float = real(1.0, minimum=0.0)
    kernel: Literal["torch", "npu_apply_adam_w", "npu_fused_adamw"] = "torch"
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.min_lr > self.lr:
            yield Problem("min_lr", self.min_lr, f"must be <= lr={self.lr}")


@frozen(kw_only=True)
class Pretraining:
    """Next-token loss. ``per_token`` weighs every token of a step alike; otherwise every microbatch of a rank.

    ``dropout`` is the share of activations dropped, of attention's weights and before each addition to the stream;
    ``mtp_loss`` the weight of the losses of multi-token prediction, all depths together; ``indexer_loss`` that of each
    layer whose indexer learns where its attention looks, which changes the indexer alone: with 0 it stays as it is.
    """

    kind: ClassVar[str] = "pretraining"
    per_token: bool = False
    mtp_loss: float = trait(0.1, minimum=0.0)
    indexer_loss: float = trait(1.0, minimum=0.0)
    dropout: float = real(0.0, minimum=0.0, maximum=1.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Sft:
    """Next-token loss on the answers alone. Not ``padded``, a microbatch is as long as its longest sample."""

    kind: ClassVar[str] = "sft"
    per_token: bool = False
    mtp_loss: float = trait(0.1, minimum=0.0)
    indexer_loss: float = trait(1.0, minimum=0.0)
    padded: bool = True
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Dpo:
    """Preference pairs, chosen and rejected in one forward, so twice ``mbs`` samples (arXiv 2305.18290).

    ``simpo`` (arXiv 2405.14734) has no reference model, which the other losses keep beside the trained one.
    """

    kind: ClassVar[str] = "dpo"
    per_token: ClassVar[bool] = False
    mtp_loss: ClassVar[float] = 0.0
    indexer_loss: ClassVar[float] = 0.0
    loss: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    beta: float = real(0.1, above=0.0)
    label_smoothing: float = real(0.0, minimum=0.0, maximum=0.5)
    padded: bool = True
    __attrs_post_init__ = check_spec


Objective: TypeAlias = Pretraining | Sft | Dpo


@frozen(kw_only=True)
class Lora:
    """Low-rank adapters beside frozen weights (arXiv 2106.09685), scaled by alpha/rank.

    ``base="nf4"`` stores the frozen linear weights in 4 bits (QLoRA, arXiv 2305.14314).
    """

    kind: ClassVar[str] = "lora"
    rank: int = at_least(1, default=16)
    alpha: float = real(32.0, above=0.0)
    targets: tuple[Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"], ...] = many(
        ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    )
    base: Literal["params", "nf4"] = "params"
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if not self.targets:
            yield Problem("targets", self.targets, "must name at least one linear layer")
