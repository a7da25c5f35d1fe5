"""Every kernel there is: which code computes which op, on which device, in which dtypes, within which limits.

A row is data. Its function is an import string, so that a planner reads the table without loading torch. Rows of an op
stand in the order of preference; the last one is plain torch and is what the op means. All kernels of an op are called
alike, as its reference's docstring says.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ridgeline.core.errors import one_of
from ridgeline.core.frozen import frozen
from ridgeline.kernels.capabilities import DEVICE_NAMES, DeviceName, Software


@frozen(kw_only=True)
class Limit:
    """What a kernel asks of one trait of its call, such as ``head_dim``; None asks nothing.

    A trait that is a yes or a no is 1 or 0.
    """

    trait: str
    minimum: int | None = None
    maximum: int | None = None
    multiple_of: int | None = None
    among: tuple[int, ...] | None = None

    def __str__(self) -> str:
        bounds = (("", ">=", self.minimum), ("", "<=", self.maximum), ("a multiple of", "", self.multiple_of))
        words = [" ".join(filter(None, (before, sign, str(size)))) for before, sign, size in bounds if size is not None]
        if self.among is not None:
            words.append(("= " if len(self.among) == 1 else "among ") + ", ".join(map(str, self.among)))
        return f"{self.trait} {', '.join(words)}"

    def rule(self, value: int) -> str:
        """The rule that a value breaks, or nothing.

        Example:
            >>> Limit(trait="head_dim", maximum=768, multiple_of=2).rule(769)
            'head_dim=769: must be <= 768'
        """
        if self.minimum is not None and value < self.minimum:
            return f"{self.trait}={value}: must be >= {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"{self.trait}={value}: must be <= {self.maximum}"
        if self.multiple_of is not None and value % self.multiple_of:
            return f"{self.trait}={value}: must be a multiple of {self.multiple_of}"
        if self.among is not None and value not in self.among:
            return f"{self.trait}={value}: {one_of(self.among)}"
        return ""


@frozen(kw_only=True)
class Need:
    """What a kernel asks of the software on its machine.

    Attributes:
        field: One of `Software`.
        at_least: A version; None asks for none.
        prefix: What the value begins with; None asks nothing.
    """

    field: str
    at_least: str | None = None
    prefix: str | None = None

    def __str__(self) -> str:
        wanted = f">= {self.at_least}" if self.at_least is not None else f"{self.prefix}*"
        return f"{self.field} {wanted}"

    def rule(self, software: Software) -> str:
        """The rule that the software breaks, or nothing.

        Example:
            >>> need = Need(field="cann", at_least="8.5")
            >>> need.rule(Software(cann="8.10.0")), need.rule(Software())
            ('', 'cann=None: must be >= 8.5')
        """
        value = getattr(software, self.field)
        if self.prefix is not None and not (value or "").startswith(self.prefix):
            return f"{self.field}={value}: must be {self.prefix}*"
        if self.at_least is not None and (value is None or _numbers(value) < _numbers(self.at_least)):
            return f"{self.field}={value}: must be >= {self.at_least}"
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 8.5.0 of "8.5.0.RC1"."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


@frozen(kw_only=True)
class Kernel:
    """One implementation of an op.

    Attributes:
        op: What it computes.
        name: What a plan calls it; unique within the op.
        function: ``module:function``.
        devices: Where it runs.
        dtypes: Of its inputs, torch's names.
        limits: On traits of the call.
        needs: On the software of the machine.
        deterministic: Equal inputs give equal bits, at least where CANN is told that they must.
        fallback_on: Devices for which it was not written; policy "strict" passes it over there.
        why_on_npu: Of an op that has no kernel for an npu, why not.
    """

    op: str
    name: str
    function: str
    devices: tuple[DeviceName, ...]
    dtypes: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    needs: tuple[Need, ...] = ()
    deterministic: bool = True
    fallback_on: tuple[DeviceName, ...] = ()
    why_on_npu: str = ""


def _reference(
    op: str, *, module: str | None = None, fallback_on: tuple[DeviceName, ...] = ("npu",), why_on_npu: str = ""
) -> Kernel:
    return Kernel(
        op=op,
        name="torch",
        function=f"ridgeline.kernels.reference.{module or op}:{op}",
        devices=DEVICE_NAMES,
        dtypes=("float32", "bfloat16", "float16", "float64"),
        fallback_on=fallback_on,
        why_on_npu=why_on_npu,
    )


_HALF = ("bfloat16", "float16")
_HALF_OR_SINGLE = (*_HALF, "float32")
_TORCH_NPU = Need(field="torch_npu", at_least="2.13")


def _npu(
    op: str,
    name: str,
    *limits: Limit,
    module: str | None = None,
    dtypes: tuple[str, ...] = _HALF_OR_SINGLE,
    needs: tuple[Need, ...] = (),
    deterministic: bool = True,
) -> Kernel:
    return Kernel(
        op=op,
        name=name,
        function=f"ridgeline.kernels.npu.{module or op}:{op}",
        devices=("npu",),
        dtypes=dtypes,
        limits=limits,
        needs=(_TORCH_NPU, *needs),
        deterministic=deterministic,
    )


def _both(op: str, name: str, *limits: Limit, module: str | None = None, **row: object) -> tuple[Kernel, ...]:
    """An op with a kernel of torch_npu, and its reference."""
    return _npu(op, name, *limits, module=module, **row), _reference(op, module=module)  # pyright: ignore[reportArgumentType]  as `_npu`


def _torch_everywhere(op: str) -> tuple[Kernel, ...]:
    """An op whose torch calls are kernels on an npu too."""
    return (_reference(op, fallback_on=(), why_on_npu="torch's own op is a kernel there"),)


def _torch_alone(op: str, why_on_npu: str, *, module: str | None = None) -> tuple[Kernel, ...]:
    """An op that torch_npu has no kernel for."""
    return (_reference(op, module=module, why_on_npu=why_on_npu),)


_HEADS = (Limit(trait="head_dim", maximum=768), Limit(trait="heads", maximum=256))
_NO_SOFTCAP, _NO_SINKS = Limit(trait="softcap", maximum=0), Limit(trait="sinks", maximum=0)
_SINKS_SINCE = Need(field="cann", at_least="8.5")
_ROWS = (Limit(trait="topk", maximum=512), Limit(trait="rows", maximum=2**24 - 2))
_FUSED_COLLECTIVE = (
    Limit(trait="tp", among=(2, 4, 8)),
    Limit(trait="in_features", minimum=256, maximum=65534),
    Limit(trait="out_features", minimum=256, maximum=65534),
)
_ATLAS_A2 = (Need(field="chip", prefix="Ascend910B"),)
# The first release whose gated delta rule has kernels for triton-ascend, and the compiler that its extra "npu" names.
_TRITON_ASCEND = (Need(field="triton_ascend", at_least="3.6"), Need(field="fla", at_least="0.6"))

KERNELS: Mapping[str, tuple[Kernel, ...]] = MappingProxyType(
    {
        "adamw": _both("adamw", "npu_apply_adam_w", dtypes=("float32",)),
        "add_rms_norm": _both("add_rms_norm", "npu_add_rms_norm"),
        "attention": _both("attention", "npu_fusion_attention", *_HEADS),
        "bounded_swiglu": _both("bounded_swiglu", "npu_swiglu"),
        "causal_conv1d": _torch_everywhere("causal_conv1d"),
        "clamped_swiglu": _both("clamped_swiglu", "npu_clipped_swiglu"),
        "cross_entropy": _both("cross_entropy", "npu_cross_entropy_loss", Limit(trait="tokens", maximum=200_000)),
        "flash_attention": (
            _npu("flash_attention", "npu_fusion_attention", *_HEADS, _NO_SOFTCAP, needs=(_SINKS_SINCE,)),
            _npu("flash_attention", "npu_fusion_attention_no_sinks", *_HEADS, _NO_SOFTCAP, _NO_SINKS),
            _reference("flash_attention"),
        ),
        "gated_delta_rule": _both(
            "gated_delta_rule",
            "fla_chunk_gated_delta_rule",
            Limit(trait="key_head_dim", maximum=256, multiple_of=2),
            Limit(trait="value_head_dim", maximum=256, multiple_of=2),
            dtypes=_HALF,
            needs=_TRITON_ASCEND,
        ),
        "gather_matmul": _both(
            "gather_matmul", "npu_all_gather_base_mm", *_FUSED_COLLECTIVE, module="collective_matmul", needs=_ATLAS_A2
        ),
        "geglu": _both("geglu", "npu_geglu"),
        "grouped_matmul": _both(
            "grouped_matmul",
            "npu_grouped_matmul",
            Limit(trait="in_features", maximum=65535),
            Limit(trait="out_features", maximum=65535),
            Limit(trait="local_experts", maximum=128),
        ),
        "layer_norm": _torch_everywhere("layer_norm"),
        "lightning_indexer": _both(
            "lightning_indexer",
            "npu_lightning_indexer",
            Limit(trait="index_head_dim", among=(128,)),
            Limit(trait="index_topk", maximum=2048),
            dtypes=_HALF,
            deterministic=False,  # its gradient; cann/ops-transformer 29b7f908, docs/zh/op_api_list.md
        ),
        "linear_cross_entropy": _torch_alone(
            "linear_cross_entropy", "torch_npu's takes logits, which this never holds whole", module="cross_entropy"
        ),
        "mamba2_scan": _torch_alone("mamba2_scan", "torch_npu has no scan of states"),
        "masked_softmax": _both(
            "masked_softmax",
            "npu_scaled_masked_softmax",
            Limit(trait="queries", minimum=32, maximum=4096, multiple_of=32),
            Limit(trait="keys", minimum=32, maximum=4096, multiple_of=32),
        ),
        "matmul_add": _both("matmul_add", "mm_add"),
        "matmul_reduce": _both(
            "matmul_reduce", "npu_mm_all_reduce_base", *_FUSED_COLLECTIVE, module="collective_matmul", needs=_ATLAS_A2
        ),
        "matmul_scatter": _both(
            "matmul_scatter",
            "npu_mm_reduce_scatter_base",
            *_FUSED_COLLECTIVE,
            module="collective_matmul",
            needs=_ATLAS_A2,
        ),
        "nf4_matmul": _torch_alone("nf4_matmul", "torch_npu's four-bit weights are integers", module="nf4"),
        "partial_attention": _both("partial_attention", "npu_fusion_attention", *_HEADS),
        "partial_attention_grad": _both(
            "partial_attention_grad", "npu_fusion_attention_grad", *_HEADS, module="partial_attention"
        ),
        "permute": _both("permute", "npu_moe_token_permute", *_ROWS),
        "permute_by_map": _both("permute_by_map", "npu_moe_token_permute_with_routing_map", *_ROWS, module="permute"),
        "rms_norm": _both("rms_norm", "npu_rms_norm"),
        "rope": _both("rope", "npu_rotary_mul", Limit(trait="head_dim", maximum=894, multiple_of=2)),
        "router_topk": _both(
            "router_topk",
            "npu_moe_gating_top_k",
            Limit(trait="experts", maximum=2048),
            Limit(trait="topk", maximum=1024),
        ),
        "sparse_attention": _both(
            "sparse_attention",
            "npu_sparse_flash_attention",
            Limit(trait="latent", among=(512,)),
            Limit(trait="rope_head_dim", among=(64,)),
            dtypes=_HALF,
            deterministic=False,  # its gradient; cann/ops-transformer 29b7f908, docs/zh/op_api_list.md
        ),
        "sparsemixer": _torch_alone("sparsemixer", "torch_npu's routers know softmax and sigmoid"),
        "squared_relu": _torch_everywhere("squared_relu"),
        "swiglu": _both("swiglu", "npu_swiglu"),
        "unpermute": _both("unpermute", "npu_moe_token_unpermute", *_ROWS, module="permute"),
        "unpermute_by_map": _both(
            "unpermute_by_map", "npu_moe_token_unpermute_with_routing_map", *_ROWS, module="permute"
        ),
        "vocab_parallel_cross_entropy": _torch_alone(
            "vocab_parallel_cross_entropy",
            "torch_npu's leaves no place for the collectives between maximum, sum and loss",
            module="cross_entropy",
        ),
    }
)
