"""A training job as one value: the model, its layout, batch, machine, data, and how long to run."""

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

from ridgeline.core.cluster import Cluster
from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, degree, many, real, reals, trait
from ridgeline.core.frozen import frozen
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec


@frozen(kw_only=True)
class Batch:
    """Sizes of a step. ``seq_len`` in tokens, ``mbs`` and ``gbs`` in samples.

    ``packing="eod_reset"`` keeps the documents of a sample apart: positions restart and attention stops at each end of
    document.
    """

    seq_len: int = at_least(1)
    mbs: int = degree()
    gbs: int = degree()
    packing: Literal["none", "eod_reset"] = "none"
    __attrs_post_init__ = check_spec


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


@frozen(kw_only=True)
class Comm:
    """How communication is carried out.

    ``p2p`` matters to interleaved schedules: sends and receives overlapped with compute, or batched. ``tp_overlap``
    hides collectives of tp behind the products they serve: fused kernels (``mc2``), or products cut into slices
    (``coc``). ``moe_fb_overlap`` runs forwards together with backwards of other microbatches, as pairs of the
    schedule: each computes while the other's tokens are on their way between experts.
    """

    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    moe_dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    p2p: Literal["overlapped", "batched"] = "overlapped"
    tp_overlap: Literal["none", "mc2", "coc"] = "none"
    moe_fb_overlap: bool = False
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            yield Problem(
                "overlap_param_gather", True, "needs overlap_grad_reduce", "set comm.overlap_grad_reduce to true"
            )


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
    ``mtp_loss`` the weight of the losses of multi-token prediction, all depths together.
    """

    kind: ClassVar[str] = "pretraining"
    per_token: bool = False
    mtp_loss: float = trait(0.1, minimum=0.0)
    dropout: float = real(0.0, minimum=0.0, maximum=1.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Sft:
    """Next-token loss on the answers alone. Not ``padded``, a microbatch is as long as its longest sample."""

    kind: ClassVar[str] = "sft"
    per_token: bool = False
    mtp_loss: float = trait(0.1, minimum=0.0)
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


@frozen(kw_only=True)
class Source:
    """One corpus: the prefix of a ``.bin``/``.idx`` pair, or a raw file or folder; ``weight`` is its share."""

    path: str
    weight: float = real(1.0, above=0.0)
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Data:
    """What is trained on.

    Attributes:
        sources: Corpora of the blend.
        split: Shares of training, validation and test.
        tokenizer: Folder of a Hugging Face tokenizer, or its ``tokenizer.json``.
        text_key: Field of a raw record that holds its text.
        cache: Folder for tokenised raw files and sample indices; None places it beside the run's output.
    """

    sources: tuple[Source, ...] = many()
    split: tuple[float, ...] = reals((0.969, 0.03, 0.001))
    tokenizer: str | None = None
    text_key: str = "text"
    cache: str | None = None
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if len(self.split) != 3 or min(self.split) < 0 or not sum(self.split) > 0:
            yield Problem("split", self.split, "must be three shares >= 0: training, validation, test")


@frozen(kw_only=True)
class Init:
    """Where the first weights come from: random, a Hugging Face folder (``hf``), or a saved step (``checkpoint``)."""

    hf: str | None = None
    checkpoint: str | None = None
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.hf and self.checkpoint:
            yield Problem("hf", self.hf, f"excludes checkpoint={self.checkpoint!r}", "keep one of the two")


@frozen(kw_only=True)
class Run:
    """How long to train, and what is written where.

    Attributes:
        steps: Optimizer steps of the whole run.
        output: Folder for checkpoints, logs and curves.
        save_every: Steps between checkpoints; None saves only at the end.
        keep_last: Checkpoints kept; None keeps all.
        async_save: Write checkpoints in the background.
        export_hf_every: Steps between exports to Hugging Face folders, each of them saved first; None exports nothing.
        log_every: Steps between log lines.
        valid_every, valid_steps: Validate every so many steps, over so many global batches.
        seed: Of initial weights, data order and dropout.
        deterministic: Let two runs give equal bits, at the cost of some speed; kernels that cannot are passed over.
        kernels: "strict" refuses plain torch on an npu where a kernel was meant; "auto" says so and goes on.
    """

    steps: int = at_least(1, default=1000)
    output: str = "runs"
    save_every: int | None = at_least(1, default=None)
    keep_last: int | None = at_least(1, default=None)
    async_save: bool = False
    export_hf_every: int | None = at_least(1, default=None)
    log_every: int = degree()
    valid_every: int | None = at_least(1, default=None)
    valid_steps: int = degree()
    seed: int = at_least(0, default=1234)
    deterministic: bool = trait(False)
    kernels: Literal["auto", "strict"] = "auto"
    __attrs_post_init__ = check_spec


@frozen(kw_only=True)
class Profile:
    """Steps whose every operation is timed, and what is kept beside its time.

    Attributes:
        start: Steps of the run before the first profiled one.
        end: Steps of the run up to and with the last one.
        ranks: Which ranks; -1 among them is all.
        level: How much an npu tells: ``level0`` its kernels, ``level1`` also its cores and collectives, ``level2`` also
            CANN's runtime, ``none`` nothing.
        cpu: What the host does.
        stack: The Python calls behind it.
        memory: Every allocation.
        shapes: Of the tensors of every operation.
        output: Folder; None places it beside the run's output.
    """

    start: int = at_least(0, default=10)
    end: int = at_least(1, default=12)
    ranks: tuple[int, ...] = many((0,))
    level: Literal["none", "level0", "level1", "level2"] = "level0"
    cpu: bool = False
    stack: bool = False
    memory: bool = False
    shapes: bool = False
    output: str | None = None
    __attrs_post_init__ = check_spec

    def _problems(self) -> Iterator[Problem]:
        if self.end <= self.start:
            yield Problem("end", self.end, f"must be > start={self.start}", f"use {self.start + 2}")
        if self.stack and not self.cpu:
            yield Problem("stack", True, "needs cpu, which the stacks are of", "set profile.cpu to true")


@frozen(kw_only=True)
class Job:
    """Everything a training run is."""

    name: str = "job"
    model: ModelSpec
    cluster: Cluster
    batch: Batch
    layout: Layout = Layout()
    precision: Precision = Precision()
    memory: Memory = Memory()
    comm: Comm = Comm()
    optimizer: Optimizer = Optimizer()
    objective: Objective = Pretraining()
    adapter: Lora | None = None
    data: Data = Data()
    init: Init = Init()
    run: Run = Run()
    profile: Profile | None = None
    __attrs_post_init__ = check_spec

    @property
    def dp(self) -> int:
        """Data parallel degree, where tp*cp*pp divides the world size."""
        return self.cluster.world_size // (self.layout.tp * self.layout.cp * self.layout.pp)

    @property
    def num_slices(self) -> int:
        """What a stage runs in a step forward and backward, one at a time: microbatches, or slices of them."""
        return self.num_microbatches * self.layout.slices

    @property
    def num_microbatches(self) -> int:
        """Microbatches of a step on each dp rank, where mbs*dp divides gbs."""
        return self.batch.gbs // (self.batch.mbs * self.dp)
