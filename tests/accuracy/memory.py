"""Planned memory against what MindSpeed-LLM's CI measured on Ascend: after the first update, and the peak by then.

A row of data/ascend_memory.jsonl holds a launch's flags and what some ranks measured, MiB. The flags go through the
importer, as a user's script would. What a script cannot say is told here, for all rows alike:

* the software's version decides Adam's kernel and how the loss is computed (``SINCE_2_2``);
* a vocabulary stands in the row where the tokenizer decides it; the launcher reads --vocab-size for no tokenizer that
  has words of its own, and minicpm and grok1 were run with one of 32,000: their first losses, 10.33 and 10.78, lie
  below the 11.72 and 11.78 of a new model with the script's vocabulary;
* legacy models keep a causal mask of seq_len^2 bytes in every layer, outside of what any plan counts;
* until 2.1 the launcher tries a GELU on the whole sequence before there is a model (``_warm_up_mib``).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ridgeline.core.codec import Plain
from ridgeline.core.errors import RidgelineError
from ridgeline.core.job import Dpo, Job, Sft
from ridgeline.models.jobs import job_of
from ridgeline.models.scripts.job import import_command
from ridgeline.models.scripts.shell import Command
from ridgeline.parallel.plan import plan

DATA = Path(__file__).parent / "data"
MIB = 2**20
VERSIONS = ("1.0.0", "1.0.RC3", "2.0.0", "2.1.0", "2.2.0", "2.3.0", "26.0.0", "26.1.0", "master")
"""Of MindSpeed-LLM, in order."""
SINCE_2_2: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # Ascend/MindSpeed 2.0.0_core_r0.8.0 against 2.2.0_core_r0.12.1: core/optimizer/adamw.py,
        # core/tensor_parallel/cross_entropy.py
        "optimizer.kernel": ("npu_apply_adam_w", "npu_fused_adamw"),
        "memory.loss": ("copied", "in_place"),
    }
)


UNSAID: Mapping[str, str] = MappingProxyType(
    {
        "mamba-chunk-size": "no flag is read yet that describes state space layers",
        "enable-mhc": "hyper-connections: no job says them",
        "lu-lora-final-layer-index": "adapters that layers up to one update themselves, without Adam: no job says it",
        "qat-scheme": "weights trained as if in 4 bits: no job says it",
        "tp-2d": "tensors split over two axes at once: no layout says it",
    }
)
"""Flags that change memory much and that no job can say: such rows are not planned."""


UNREAD: Mapping[str, str] = MappingProxyType({"o2-gradient": "26.0.0"})
"""Flags that MindSpeed-LLM no longer reads from this version on, though scripts still give them."""


EDITED: Mapping[str, str] = MappingProxyType(
    {
        "llama2_tp2_pp4_vpp2_ptd 2.0.0": (
            "no measurement: every figure is that of version 1.0.0 less exactly 300 MiB, though the optimizer's scheme "
            "changed; edited by hand"
        )
    }
)
"""Rows whose figures no run gave, by name and version."""


GELU_KEEPS = 8
"""Tensors that tanh's approximation of GELU, written out, keeps for its backward, and its output."""


class Row(NamedTuple):
    """A published run.

    Attributes:
        listed: Among the 53 rows that the gates are about; the others were not looked at before.
        measured: By rank: MiB after the first update, and at the peak until then.
    """

    name: str
    version: str
    listed: bool
    devices: int
    vocab: int | None
    flags: Mapping[str, str]
    measured: tuple[tuple[int, int, int], ...]


class Point(NamedTuple):
    """One pipeline rank of a row, MiB; ``planned_most`` is the peak as what decides whether a job fits counts it."""

    pp_rank: int
    static: float
    peak: float
    planned_static: float
    planned_peak: float
    planned_most: float
    at: str

    @property
    def static_error(self) -> float:
        return self.planned_static / self.static - 1

    @property
    def peak_error(self) -> float:
        return self.planned_peak / self.peak - 1

    @property
    def most_error(self) -> float:
        return self.planned_most / self.peak - 1


class Outcome(NamedTuple):
    """A row and its points, or why it has none.

    Attributes:
        unpadded: Sequences are shorter than the plan's, by how much nobody published: its peak is a bound.
    """

    row: Row
    points: tuple[Point, ...]
    unpadded: bool = False
    why_not: str = ""

    @property
    def fullest(self) -> Point:
        """The pipeline rank that measured the highest peak."""
        return max(self.points, key=lambda point: point.peak)


def rows() -> tuple[Row, ...]:
    """Every row of the data file."""
    lines = (DATA / "ascend_memory.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_row(json.loads(line)) for line in lines)


def outcomes() -> tuple[Outcome, ...]:
    """Every row, planned."""
    return tuple(map(outcome, rows()))


def outcome(row: Row) -> Outcome:
    """A row, planned where it can be."""
    reasons = [why for flag, why in UNSAID.items() if flag in row.flags]
    if why := EDITED.get(f"{row.name} {row.version}") or next(iter(reasons), ""):
        return Outcome(row, (), why_not=why)
    try:
        job = job_for(row)
        planned = plan(job)
    except RidgelineError as error:
        return Outcome(row, (), why_not=str(error).splitlines()[0])
    masks, warm_up = _masks_mib(row, planned.stages.layers), _warm_up_mib(row, job)
    ranks = planned.mesh.world_size // planned.mesh.pp
    points: dict[int, Point] = {}
    for rank, static, peak in row.measured:
        memory = planned.memory[rank // ranks]
        extra = masks[memory.pp_rank]
        shorter = memory.buffers_bytes if _is_unpadded(job) else 0  # buffers are as long as the sequences were
        running = memory.first_step_bytes / MIB + extra
        point = Point(
            memory.pp_rank,
            static,
            peak,
            (memory.after_step_bytes - shorter) / MIB + extra,
            max(running, warm_up),
            max(memory.first_step_most_bytes / MIB + extra, warm_up),
            memory.first_step_at if running > warm_up else "warm-up",
        )
        known = points.get(memory.pp_rank)
        points[memory.pp_rank] = point if known is None or peak > known.peak else known
    return Outcome(row, tuple(points.values()), unpadded=_is_unpadded(job))


def job_for(row: Row) -> Job:
    """The job that a row's launch describes.

    Raises:
        RidgelineError: A job or its plan cannot be.
    """
    flags = {name: value for name, value in row.flags.items() if not _is_unread(name, row.version)}
    words = [word for name, value in flags.items() for word in (f"--{name}", *value.split())]
    launcher = (("nnodes", "1"), ("nproc_per_node", str(row.devices)))
    plain = import_command(Command("pretrain_gpt.py", launcher, tuple(words))).plain
    if row.vocab is not None:
        plain["model"]["vocab_size"] = row.vocab
    for block in plain["model"]["blocks"]:
        feed_forward = block["block"]["feed_forward"]
        if feed_forward.get("topk") == 1:  # two scripts let every weight be 1, which a plan refuses and memory ignores
            feed_forward["normalize_topk"] = False
        if "moe-router-num-groups" not in row.flags:  # older names of groups of experts are not in the rows
            feed_forward |= dict.fromkeys({"device_aux_loss", "comm_aux_loss"} & feed_forward.keys(), 0.0)
    plain["layout"]["sp"] &= plain["layout"].get("tp", 1) > 1  # upstream leaves it out in silence
    for path, choices in SINCE_2_2.items():
        part, name = path.split(".")
        plain[part][name] = choices[VERSIONS.index(row.version) >= VERSIONS.index("2.2.0")]
    fused = {"attention": "use-flash-attn", "norm": "use-fused-rmsnorm", "activation": "use-fused-swiglu"}
    plain["memory"]["plain"] = [part for part, flag in fused.items() if flag not in row.flags]
    if "attention" not in plain["memory"]["plain"]:
        plain["memory"]["plain"].append("alibi")
    plain["memory"]["grouped_experts"] = "moe-grouped-gemm" in row.flags
    mixers = [run["block"]["mixer"]["kind"] for run in plain["model"]["blocks"]]
    plain["memory"]["pads_values"] = "latent_attention" in mixers and "mla-fa-without-pad" not in row.flags
    keep = ("model", "cluster", "layout", "batch", "precision", "memory", "comm", "objective", "adapter", "optimizer")
    return job_of({"name": row.name, **{part: plain[part] for part in keep if part in plain}})


def _row(plain: Plain) -> Row:
    return Row(
        plain["name"],
        plain["version"],
        plain["listed"],
        plain["devices"],
        plain.get("vocab_of_tokenizer"),
        plain["flags"],
        tuple(map(tuple, plain["measured_mib"])),
    )


def _is_unread(flag: str, version: str) -> bool:
    return flag in UNREAD and VERSIONS.index(version) >= VERSIONS.index(UNREAD[flag])


def _masks_mib(row: Row, layers: Sequence[Sequence[int]]) -> list[float]:
    """What legacy attention keeps on each pipeline rank."""
    pp = int(row.flags.get("pipeline-model-parallel-size", "1"))
    is_legacy = "use-mcore-models" not in row.flags and VERSIONS.index(row.version) <= VERSIONS.index("2.0.0")
    mask = int(row.flags["seq-length"]) ** 2 / MIB if is_legacy and "use-flash-attn" in row.flags else 0.0
    return [mask * sum(map(len, layers[pp_rank::pp])) for pp_rank in range(pp)]


def _warm_up_mib(row: Row, job: Job) -> float:
    """What compiling the fused GELU ahead of time takes, alone on the device: the activation of a whole sequence.

    MindSpeed compiles nothing, so that GELU runs as plain operations: its input, and the 8 tensors that it leaves for a
    backward, twice, for one call's live until the next call has made its own. Each is rounded up by the allocator.

    Source:
        NVIDIA/Megatron-LM core_r0.6.0 to core_r0.8.0, training/initialize.py, `_warmup_jit_function`, whatever the
        model's activation and cp; since core_r0.12.0, so 2.2, of a rank's tokens only.
    """
    if VERSIONS.index(row.version) >= VERSIONS.index("2.2.0"):
        return 0.0
    hidden = int(row.flags["hidden-size"])
    columns = int(row.flags.get("ffn-hidden-size", 4 * hidden)) // job.layout.tp
    width = 4 if job.precision.params == "fp32" else 2
    return (2 * GELU_KEEPS + 1) * job.batch.seq_len * job.batch.mbs * columns * width / MIB


def _is_unpadded(job: Job) -> bool:
    return isinstance(job.objective, (Sft, Dpo)) and not job.objective.padded
