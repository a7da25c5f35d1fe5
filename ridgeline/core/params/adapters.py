"""Low-rank adapters in the parameter table: two matrices beside each target linear, and nothing else trains.

    NAME.weight         (outputs, inputs)    frozen, as every parameter of the model is
    NAME.lora_A.weight  (rank, inputs)       split as its linear where that splits its inputs, else whole
    NAME.lora_B.weight  (outputs, rank)      split as its linear where that splits its outputs, else whole

Source:
    arXiv 2106.09685, section 4.1; the names are those of huggingface/peft.
"""

from collections.abc import Iterable, Iterator

from ridgeline.core.job.training import Lora
from ridgeline.core.params.table import Param

A, B = ".lora_A.weight", ".lora_B.weight"
SPLITS_INPUTS = ("out", "down")
"""Roles of linears that split what they read."""


def with_adapters(params: Iterable[Param], adapter: Lora) -> Iterator[Param]:
    """These parameters, frozen, each target's two matrices behind it.

    Example:
        >>> down = Param("mlp.linear_fc2.weight", (8, 32), "down")
        >>> for param in with_adapters([down], Lora(rank=2, targets=("linear_fc2",))):
        ...     print(param.name, param.shape, param.role, param.trains)
        mlp.linear_fc2.weight (8, 32) down False
        mlp.linear_fc2.lora_A.weight (2, 32) down True
        mlp.linear_fc2.lora_B.weight (8, 2) replicated True
    """
    for param in params:
        yield Param(param.name, param.shape, param.role, param.experts, param.parts, param.place, frozen=True)
        if is_target(param, adapter):
            yield from _pair(param, adapter.rank)


def is_target(param: Param, adapter: Lora) -> bool:
    """Whether an adapter stands beside this parameter."""
    return linear_of(param) in adapter.targets


def linear_of(param: Param) -> str:
    """What a job calls the linear whose weight this is; "" of other parameters."""
    module, _, part = param.name.rpartition(".")
    return target_of(module.rpartition(".")[2]) if part == "weight" else ""


def target_of(linear: str) -> str:
    """What a job calls a linear among its targets: queries alone are the fused projection where there is no more."""
    return "linear_qkv" if linear == "linear_q" else linear


def _pair(param: Param, rank: int) -> Iterator[Param]:
    outputs, inputs = param.shape
    name, by_inputs = param.name.removesuffix(".weight"), param.role in SPLITS_INPUTS
    shared = {"experts": param.experts, "place": param.place}
    yield Param(name + A, (rank, inputs), param.role if by_inputs else "replicated", **shared, low_rank="a")
    split = ("replicated", ()) if by_inputs else (param.role, param.parts)
    yield Param(name + B, (outputs, rank), split[0], parts=split[1], **shared, low_rank="b")
