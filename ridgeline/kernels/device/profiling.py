"""Steps of a run profiled by the device's own profiler, in files that its tools open."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ridgeline.core.job import Profile
from ridgeline.kernels.capabilities import DeviceName


@contextmanager
def profiled(
    device: DeviceName, profile: Profile, *, folder: Path, rank: int, done: int
) -> Iterator[Callable[[], object]]:
    """Profile the steps that are asked for; gives what is to be called at the end of each step.

    torch.profiler writes ``rankN.TIME.pt.trace.json``, which TensorBoard and Perfetto open. torch_npu.profiler writes a
    folder ``rankN_TIME_ascend_pt``, which MindStudio Insight opens, with a ``trace_view.json`` in it for the others.

    Args:
        device: Where the run computes.
        profile: What to profile.
        folder: Where the files go; it exists.
        rank: Whose files they are.
        done: Steps of the run that were made before.
    """
    first, end = max(profile.start, done), profile.end
    if first >= end or not {rank, -1} & {*profile.ranks}:
        yield lambda: None
        return
    # A step of warm-up, where there is one, takes the profiler's own start out of the first profiled step.
    warmup = min(1, first - done)
    when = {"skip_first": first - done - warmup, "wait": 0, "warmup": warmup, "active": end - first, "repeat": 1}
    kept = {"record_shapes": profile.shapes, "profile_memory": profile.memory, "with_stack": profile.stack}
    make = _npu_profiler if device == "npu" else _torch_profiler
    with make(device, profile, folder=folder, worker=f"rank{rank}", when=when, kept=kept) as profiler:
        yield profiler.step


def _torch_profiler(
    device: DeviceName, profile: Profile, *, folder: Path, worker: str, when: dict[str, int], kept: dict[str, Any]
) -> Any:
    """torch's own, whose levels are all one."""
    from torch.profiler import ProfilerActivity, schedule, tensorboard_trace_handler
    from torch.profiler import profile as make

    activities = [ProfilerActivity.CUDA] if device == "cuda" else []
    if profile.cpu or device == "cpu":
        activities.append(ProfilerActivity.CPU)
    handler = tensorboard_trace_handler(str(folder), worker_name=worker)
    return make(activities=activities, schedule=schedule(**when), on_trace_ready=handler, **kept)


def _npu_profiler(
    device: DeviceName, profile: Profile, *, folder: Path, worker: str, when: dict[str, int], kept: dict[str, Any]
) -> Any:
    """torch_npu's, which from level 1 on counts how busy the parts of a core are."""
    profiler = importlib.import_module("torch_npu").profiler
    levels, metrics = profiler.ProfilerLevel, profiler.AiCMetrics
    level = {
        "none": levels.Level_none,
        "level0": levels.Level0,
        "level1": levels.Level1,
        "level2": levels.Level2,
    }[profile.level]
    activities = [profiler.ProfilerActivity.NPU]
    if profile.cpu:
        activities.append(profiler.ProfilerActivity.CPU)
    options = profiler._ExperimentalConfig(
        profiler_level=level,
        aic_metrics=metrics.PipeUtilization if profile.level in ("level1", "level2") else metrics.AiCoreNone,
        l2_cache=False,
        data_simplification=True,
        export_type=profiler.ExportType.Text,
    )
    return profiler.profile(
        activities=activities,
        schedule=profiler.schedule(**when),
        on_trace_ready=profiler.tensorboard_trace_handler(str(folder), worker_name=worker),
        experimental_config=options,
        **kept,
    )
