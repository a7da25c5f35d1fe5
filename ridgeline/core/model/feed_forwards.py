"""What works on each position alone: an MLP, or routed experts."""

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from ridgeline.core.errors import Problem, divisors, one_of
from ridgeline.core.fields import at_least, check_spec, real, trait
from ridgeline.core.frozen import frozen

Activation: TypeAlias = Literal[
    "swiglu", "geglu", "geglu_tanh", "shifted_swiglu", "bounded_swiglu", "gelu", "gelu_tanh", "relu", "squared_relu"
]
"""Gated ones take a gate and an up-projection of the same width: ``act(gate) * up``; ``shifted_swiglu`` is
``gate * sigmoid(1.702 * gate) * (up + 1)``. ``tanh`` names the approximation of GELU. A limit bounds the gate from
above and ``up`` on both sides; in a ``bounded_swiglu`` not the gate, but what SiLU makes of it."""


def is_gated(activation: Activation) -> bool:
    """Whether an activation takes a gate beside the up-projection."""
    return activation.endswith("glu") or activation == "geglu_tanh"


@frozen(kw_only=True)
class Mlp:
    """``down(activation(gate(x), up(x)))``, without a gate ``down(activation(up(x)))``.

    ``ffn_hidden`` is the width of gate and of up, ``limit`` what bounds them.
    """

    kind: ClassVar[str] = "mlp"
    ffn_hidden: int = at_least(1)
    activation: Activation = "swiglu"
    bias: bool = False
    limit: float | None = trait(None, above=0.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Moe:
    """``experts`` MLPs of width ``ffn_hidden``, ``topk`` of them for each token.

    Attributes:
        normalize_topk: The weights of the chosen experts sum to 1, then times ``topk_scale``.
        aux_loss: Coefficient of the load balancing loss, over a microbatch or (``aux_per_sequence``) each sequence.
        device_aux_loss, comm_aux_loss: Of DeepSeek-V2's losses over groups of experts, and over what is sent to them.
        z_loss: Coefficient of the router's z-loss.
        score: What makes scores of the router's logits.
        nearness, sampled: A token's two experts under ``sparsemixer`` weigh by their softmax among those within
            ``2 * nearness`` of the best, relative to the larger magnitude. In training they are drawn by these weights,
            or (``sampled=False``) are the best ones, as in evaluation.
        input_jitter: In training, tokens are multiplied by noise from 1 - this to 1 + this.
        groups, group_topk: Experts lie in ``groups``; a token chooses among the best ``group_topk`` of them, whose
            score is their ``max`` or the sum of their ``top2``.
        expert_bias: A bias on each expert's score for choosing only, moved by load instead of a gradient:
            after a step each by ``expert_bias_rate``, up where the expert had less than a mean load, down where more.
        router_bias, bias: Of the router, and of the experts' products.
        shared_ffn: Width of the experts that every token meets, all together; ``shared_gate`` puts a sigmoid on them.
        limit, shared_limit: What bounds the gate and the up-projection of routed and of shared experts.
        zero_experts: Further choices of the router that give back the token as it is.
        capacity_factor: Tokens beyond this times an equal share are dropped, and (``pad_to_capacity``) made up to it.
            Of each rank's tokens, an expert keeps those of the greatest weight (``probs``) or the first (``position``).
    """

    kind: ClassVar[str] = "moe"
    experts: int = at_least(1)
    topk: int = at_least(1)
    ffn_hidden: int = at_least(1)
    normalize_topk: bool = True
    topk_scale: float = trait(1.0, above=0.0)
    aux_loss: float = real(0.0, minimum=0.0)
    aux_per_sequence: bool = trait(False)
    device_aux_loss: float = trait(0.0, minimum=0.0)
    comm_aux_loss: float = trait(0.0, minimum=0.0)
    z_loss: float = real(0.0, minimum=0.0)
    score: Literal["softmax", "sigmoid", "sparsemixer"] = trait("softmax")
    nearness: float = trait(0.0, minimum=0.0)
    sampled: bool = trait(True)
    input_jitter: float = trait(0.0, minimum=0.0, maximum=1.0)
    groups: int = trait(1, minimum=1)
    group_topk: int = trait(1, minimum=1)
    group_score: Literal["max", "top2"] = trait("top2")
    expert_bias: bool = trait(False)
    expert_bias_rate: float = trait(1e-3, minimum=0.0)
    router_bias: bool = trait(False)
    bias: bool = trait(False)
    shared_ffn: int | None = trait(None, minimum=1)
    shared_gate: bool = trait(False)
    zero_experts: int = trait(0, minimum=0)
    activation: Activation = "swiglu"
    limit: float | None = trait(None, above=0.0)
    shared_limit: float | None = trait(None, above=0.0)
    capacity_factor: float | None = trait(None, above=0.0)
    pad_to_capacity: bool = trait(False)
    drop: Literal["probs", "position"] = trait("probs")
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.topk > self.experts + self.zero_experts:
            yield Problem("topk", self.topk, f"must be <= experts={self.experts}")
        if self.experts % self.groups:
            yield Problem("groups", self.groups, f"must divide experts={self.experts}", one_of(divisors(self.experts)))
        elif self.group_topk > self.groups:
            yield Problem("group_topk", self.group_topk, f"must be <= groups={self.groups}")
        if self.shared_gate and self.shared_ffn is None:
            yield Problem("shared_gate", True, "needs shared experts to gate", "set shared_ffn")
        if self.pad_to_capacity and self.capacity_factor is None:
            yield Problem("pad_to_capacity", True, "needs a capacity", "set capacity_factor")
        elif self.pad_to_capacity and (self.capacity_factor or 0.0) * self.topk > self.experts:
            most = self.experts / self.topk
            rule = f"must be <= experts/topk={most:g} to pad to, since no expert has more than all tokens"
            yield Problem("capacity_factor", self.capacity_factor, rule, f"use {most:g} or less")
        if self.capacity_factor is not None and self.zero_experts:
            rule = f"bounds experts that compute, and {self.zero_experts} zero experts do not"
            yield Problem("capacity_factor", self.capacity_factor, rule, "leave it out")
        if self.score == "sparsemixer":
            yield from self._mixer_problems()
        for name in ("device_aux_loss", "comm_aux_loss"):
            if (value := getattr(self, name)) and self.groups == 1:
                yield Problem(name, value, "is a loss over groups of experts", "set groups and group_topk, or use 0.0")

    def _mixer_problems(self) -> Iterator[Problem]:
        """What SparseMixer does by itself."""
        fixed = {"topk": 2, "normalize_topk": False, "topk_scale": 1.0, "groups": 1, "expert_bias": False}
        for name, only in {**fixed, "zero_experts": 0}.items():
            if (value := getattr(self, name)) != only:
                yield Problem(name, value, f"must be {only} with score='sparsemixer'")
        if not self.nearness:
            yield Problem("nearness", self.nearness, "must be > 0 with score='sparsemixer'", "Phi-3.5-MoE has 0.01")


FeedForward: TypeAlias = Mlp | Moe
