"""How fast a step was, in the units of the plan."""

import attrs

from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.job import Job


@attrs.frozen(kw_only=True)
class Speed:
    """The speed of a step.

    Attributes:
        tokens_per_s: Of all ranks.
        tflops_per_s: FLOPs of the model (attention in full, recomputation not counted), per device.
        mfu: ``tflops_per_s`` as a share of the chip's peak, 0 .. 1.
    """

    tokens_per_s: float
    tflops_per_s: float
    mfu: float


def speed_of(job: Job, seconds: float) -> Speed:
    """The speed of a step that took so long.

    Example:
        >>> from ridgeline.models.jobs import preset
        >>> speed = speed_of(preset("qwen2.5-7b"), seconds=10.0)
        >>> round(speed.tokens_per_s), f"{speed.mfu:.1%}"
        (26214, '...%')
    """
    tokens_per_s = job.batch.gbs * job.batch.seq_len / seconds
    flops = training_flops_per_token(job.model, job.batch.seq_len, attention="full") * tokens_per_s
    per_device = flops / job.cluster.world_size
    return Speed(
        tokens_per_s=tokens_per_s, tflops_per_s=per_device / 1e12, mfu=per_device / job.cluster.chip.cube_flops
    )
