"""Ridgeline: LLM training for Ascend NPUs as a functional core over Megatron-core.

    job = ridgeline.preset("qwen2.5-7b", cluster="atlas-800t-a2")
    plan = ridgeline.plan(ridgeline.with_layout(tp=4)(job))
    program = ridgeline.lower(plan, rank=0)

Names are loaded when first used, so that importing this package costs nothing and planning loads no torch.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ridgeline.core.cluster import Chip as Chip
    from ridgeline.core.cluster import Cluster as Cluster
    from ridgeline.core.cluster import Link as Link
    from ridgeline.core.codec import digest as digest
    from ridgeline.core.codec import dumps as dumps
    from ridgeline.core.codec import loads as loads
    from ridgeline.core.diff import diff as diff
    from ridgeline.core.errors import CheckpointError as CheckpointError
    from ridgeline.core.errors import DataError as DataError
    from ridgeline.core.errors import LoweringError as LoweringError
    from ridgeline.core.errors import PlanError as PlanError
    from ridgeline.core.errors import RidgelineError as RidgelineError
    from ridgeline.core.errors import SpecError as SpecError
    from ridgeline.core.job import Batch as Batch
    from ridgeline.core.job import Comm as Comm
    from ridgeline.core.job import ConstantLr as ConstantLr
    from ridgeline.core.job import CosineLr as CosineLr
    from ridgeline.core.job import Data as Data
    from ridgeline.core.job import Dpo as Dpo
    from ridgeline.core.job import FullRecompute as FullRecompute
    from ridgeline.core.job import Init as Init
    from ridgeline.core.job import Job as Job
    from ridgeline.core.job import LinearLr as LinearLr
    from ridgeline.core.job import Lora as Lora
    from ridgeline.core.job import Memory as Memory
    from ridgeline.core.job import Optimizer as Optimizer
    from ridgeline.core.job import Precision as Precision
    from ridgeline.core.job import Pretraining as Pretraining
    from ridgeline.core.job import Run as Run
    from ridgeline.core.job import SelectiveRecompute as SelectiveRecompute
    from ridgeline.core.job import Sft as Sft
    from ridgeline.core.job import Source as Source
    from ridgeline.core.job import WsdLr as WsdLr
    from ridgeline.core.layout import Layout as Layout
    from ridgeline.core.model import Attention as Attention
    from ridgeline.core.model import Block as Block
    from ridgeline.core.model import DynamicRope as DynamicRope
    from ridgeline.core.model import GatedDeltaNet as GatedDeltaNet
    from ridgeline.core.model import LatentAttention as LatentAttention
    from ridgeline.core.model import LinearRope as LinearRope
    from ridgeline.core.model import Llama3Rope as Llama3Rope
    from ridgeline.core.model import Mlp as Mlp
    from ridgeline.core.model import ModelSpec as ModelSpec
    from ridgeline.core.model import Moe as Moe
    from ridgeline.core.model import Repeat as Repeat
    from ridgeline.core.model import Rope as Rope
    from ridgeline.core.model import YarnRope as YarnRope
    from ridgeline.core.params import num_active_params as num_active_params
    from ridgeline.core.params import num_params as num_params
    from ridgeline.core.transforms import compose as compose
    from ridgeline.core.transforms import distributed_optimizer as distributed_optimizer
    from ridgeline.core.transforms import identity as identity
    from ridgeline.core.transforms import noop_layers as noop_layers
    from ridgeline.core.transforms import on_nodes as on_nodes
    from ridgeline.core.transforms import recompute as recompute
    from ridgeline.core.transforms import reduce_layers as reduce_layers
    from ridgeline.core.transforms import resize as resize
    from ridgeline.core.transforms import with_layout as with_layout
    from ridgeline.models.jobs import job_of as job_of
    from ridgeline.models.jobs import preset as preset
    from ridgeline.models.lowerable import lowering_faults as lowering_faults
    from ridgeline.models.program import RankProgram as RankProgram
    from ridgeline.models.program import lower as lower
    from ridgeline.models.zoo import model_names as model_names
    from ridgeline.models.zoo import model_preset as model_preset
    from ridgeline.parallel.clusters import cluster_preset as cluster_preset
    from ridgeline.parallel.plan import Plan as Plan
    from ridgeline.parallel.plan import plan as plan
    from ridgeline.parallel.search import Grid as Grid
    from ridgeline.parallel.search import SearchResult as SearchResult
    from ridgeline.parallel.search import grid_of as grid_of
    from ridgeline.parallel.search import search as search

HOMES = MappingProxyType(
    {
        "ridgeline.core.cluster": "Chip Cluster Link",
        "ridgeline.core.codec": "digest dumps loads",
        "ridgeline.core.diff": "diff",
        "ridgeline.core.errors": ("CheckpointError DataError LoweringError PlanError RidgelineError SpecError"),
        "ridgeline.core.job": (
            "Batch Comm ConstantLr CosineLr Data Dpo FullRecompute Init Job LinearLr Lora Memory Optimizer Precision "
            "Pretraining Run SelectiveRecompute Sft Source WsdLr"
        ),
        "ridgeline.core.layout": "Layout",
        "ridgeline.core.model": (
            "Attention Block DynamicRope GatedDeltaNet LatentAttention LinearRope Llama3Rope Mlp ModelSpec Moe "
            "Repeat Rope YarnRope"
        ),
        "ridgeline.core.params": "num_active_params num_params",
        "ridgeline.core.transforms": (
            "compose distributed_optimizer identity noop_layers on_nodes recompute reduce_layers resize with_layout"
        ),
        "ridgeline.models.jobs": "job_of preset",
        "ridgeline.models.lowerable": "lowering_faults",
        "ridgeline.models.program": "RankProgram lower",
        "ridgeline.models.zoo": "model_names model_preset",
        "ridgeline.parallel.clusters": "cluster_preset",
        "ridgeline.parallel.plan": "Plan plan",
        "ridgeline.parallel.search": "Grid SearchResult grid_of search",
    }
)
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names.split():
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'ridgeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(name for names in HOMES.values() for name in names.split())])
