"""A training job as one value."""

from ridgeline.core.job.job import Batch, Comm, Job
from ridgeline.core.job.memory import FullRecompute, Memory, Part, Precision, SelectiveRecompute
from ridgeline.core.job.run import Data, Init, Profile, Run, Source
from ridgeline.core.job.training import (
    ConstantLr,
    CosineLr,
    Dpo,
    LinearLr,
    Lora,
    LrSchedule,
    Objective,
    Optimizer,
    Pretraining,
    Sft,
    WsdLr,
)

__all__ = [
    "Batch",
    "Comm",
    "ConstantLr",
    "CosineLr",
    "Data",
    "Dpo",
    "FullRecompute",
    "Init",
    "Job",
    "LinearLr",
    "Lora",
    "LrSchedule",
    "Memory",
    "Objective",
    "Optimizer",
    "Part",
    "Precision",
    "Pretraining",
    "Profile",
    "Run",
    "SelectiveRecompute",
    "Sft",
    "Source",
    "WsdLr",
]
