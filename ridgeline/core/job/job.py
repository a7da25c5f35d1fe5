"""A training job as one value: the model, its layout, batch, machine, data, and how long to run."""

from collections.abc import Iterator
from typing import Literal

from ridgeline.core.cluster import Cluster
from ridgeline.core.errors import Problem
from ridgeline.core.fields import at_least, check_spec, degree, many
from ridgeline.core.frozen import frozen
from ridgeline.core.job.memory import Memory, Precision
from ridgeline.core.job.run import Data, Init, Profile, Run
from ridgeline.core.job.training import Lora, Objective, Optimizer, Pretraining
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
class Comm:
    """How communication is carried out.

    Attributes:
        moe_dispatcher: How tokens reach their experts: each is sent to those it chose (``alltoall``); the same, but a
            tp rank sends its columns of all tokens instead of all columns of its own (``alltoall_seq``); or every rank
            gets all tokens (``allgather``).
        moe_overlap: What runs while tokens are on their way to experts and back: finding their places
            (``permutation``, of tokens gathered), the ``shared_experts``, and in the backward products of the experts'
            weight gradients (``weight_gradients``).
        moe_fb_overlap: Forwards run together with backwards of other microbatches, as pairs of the schedule: each
            computes while the other's tokens are on their way between experts.
        p2p: Transfers between stages run beside the compute, or are waited for where they begin (``batched``).
        tp_overlap: Collectives of tp are hidden behind the products they serve: by fused kernels (``mc2``), or products
            cut into slices (``coc``).
    """

    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    moe_dispatcher: Literal["alltoall", "alltoall_seq", "allgather"] = "alltoall"
    moe_overlap: tuple[Literal["permutation", "shared_experts", "weight_gradients"], ...] = many()
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
