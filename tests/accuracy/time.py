"""Planned steps against published ones on Ascend: rows to jobs, to plans, with constants that never saw a row's family.

A row of data/ascend_throughput.jsonl holds a model's sizes, its script's layout, batch and flags, and what the README
gave: tokens/s of an NPU, or an MFU of 353.9 TFLOP/s (inferred, see the chip's file). What no row says is told here:

* vocabularies that only the tokenizer knows (``VOCABULARIES``);
* experts are split over tp, as Megatron-core did before 0.9;
* SwiGLU or GELU, norms and tied embeddings follow from the model (``GELU``, ``TIED``);
* rotary positions that no fused kernel turns (no fRope) are planned as if one did: no job says it.

``python -m tests.accuracy.time`` prints the rows that are fitted as runs for ``ridgeline calibrate``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

from ridgeline.core.cluster import Cluster
from ridgeline.core.codec import unstructure
from ridgeline.core.flops import training_flops_per_token
from ridgeline.core.job import Batch, Comm, FullRecompute, Job, Lora, Memory, Precision, Pretraining, SelectiveRecompute
from ridgeline.core.layout import Layout
from ridgeline.core.model import Attention, Block, LatentAttention, Mlp, ModelSpec, Moe, Repeat
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.calibration import MeasuredRun, with_constants
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan

DATA = Path(__file__).parent / "data"
FOLDS = DATA / "time_folds.json"
"""Constants fitted to all rows (``all``), and to all but each family's; written by `python -m tests.accuracy`."""

VOCABULARIES: Mapping[str, int] = MappingProxyType(
    {
        "Aquila": 100008,
        "Aquila2": 100008,
        "Baichuan": 64000,
        "Bloom": 250880,
        "CodeLlama": 32000,
        "GPT3": 50257,
        "GPT4": 50257,
        "LLaMA": 32000,
        "LLaMA2": 32000,
        "Mixtral": 32000,
        "Qwen": 151936,
    }
)
GELU = ("Bloom", "GPT3", "GPT4")
TIED = ("Bloom", "GPT3", "GPT4", "LLaMA3.2", "MiniCPM", "Qwen2 0.5B", "Qwen2 1.5B", "Qwen2.5 3B")
ALIBI = ("Baichuan 13B", "Bloom")
"""These ran without the fused kernel of attention."""
LATENT: Mapping[str, LatentAttention] = MappingProxyType(
    {
        "DeepSeek-V2": LatentAttention(
            heads=128, q_lora_rank=1536, kv_lora_rank=512, nope_head_dim=128, rope_head_dim=64, v_head_dim=128
        )
    }
)
CP_ALGORITHMS: Mapping[str, str] = MappingProxyType({"megatron_cp_algo": "ring", "ulysses_cp_algo": "ulysses"})


PRIORS: Mapping[str, float] = MappingProxyType(
    {
        "gemm": 0.87,  # one product at 4096^3 and 8192^3: 0.89 and 0.85, github.com/zzc0721/torch-performance-test-data
        "softmax_flops": 60.0,  # about 30 fp32 operations a score, at half the fp16 rate: a guess
        "memory": 0.68,  # 0.6 to 0.75 is usually seen
        "scatter": 0.5,  # a guess
        "fused_overlap": 0.8,  # a guess
        "intra": 0.5,  # a guess
        "inter": 0.5,  # a guess
    }
)
"""The constants that are fitted, as they stood before any run was seen; fits are held near them."""


class Row(NamedTuple):
    """A published step.

    Attributes:
        name: Model, size and sequence.
        family: What is held out together.
        kind: ``Mcore`` rows are judged and fitted, ``headline`` rows fitted; ``Legacy`` and all others only reported.
        job: As planned.
        step_us: As measured.
        npus: Devices.
        fields: As published.
    """

    name: str
    family: str
    kind: str
    job: Job
    step_us: float
    npus: int
    fields: Mapping[str, Any]

    @property
    def fitted(self) -> bool:
        """Whether constants are fitted to it."""
        return self.kind in ("Mcore", "headline")


class Outcome(NamedTuple):
    """A row and its plan's throughput over the measured one, less one.

    Attributes:
        error: Under the chip's own constants.
        held_out: Under constants fitted without its family; None for a row that is never fitted.
    """

    row: Row
    error: float
    held_out: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """As measured, of one NPU."""
        batch = self.row.job.batch
        return batch.gbs * batch.seq_len / self.row.npus / self.row.step_us * 1e6


@cache
def rows(name: str = "ascend_throughput") -> tuple[Row, ...]:
    """The rows of a data file."""
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_row(json.loads(line)) for line in lines)


@cache
def outcomes(name: str = "ascend_throughput") -> tuple[Outcome, ...]:
    """Every row of a data file, planned."""
    folds = json.loads(FOLDS.read_text(encoding="utf-8"))
    return tuple(_outcome(row, folds) for row in rows(name))


def runs(of: Sequence[Row], *, start: Mapping[str, float]) -> tuple[MeasuredRun, ...]:
    """Rows as the fit takes them, from these constants."""
    jobs = [attrs.evolve(row.job, cluster=with_constants(row.job.cluster, dict(start))) for row in of]
    return tuple(
        MeasuredRun(name=row.name, family=row.family, job=job, step_us=row.step_us)
        for row, job in zip(of, jobs, strict=True)
    )


def _outcome(row: Row, folds: Mapping[str, Mapping[str, float]]) -> Outcome:
    held_out = None
    if row.fitted:
        cluster = with_constants(row.job.cluster, dict(folds[row.family]))
        held_out = row.step_us / plan(attrs.evolve(row.job, cluster=cluster)).time.step_us - 1
    return Outcome(row, row.step_us / plan(row.job).time.step_us - 1, held_out)


def _row(fields: Mapping[str, Any]) -> Row:
    job = _job(fields)
    tokens = job.batch.gbs * job.batch.seq_len / job.cluster.world_size
    if "mfu" in fields:
        flops = training_flops_per_token(job.model, job.batch.seq_len, attention="full")
        step_us = tokens * flops / (fields["mfu"] * job.cluster.chip.cube_flops) * 1e6
    elif "samples_per_s" in fields:
        step_us = job.batch.gbs / fields["samples_per_s"] * 1e6
    else:
        dies = 2 if fields.get("machine") == "a3" else 1
        published = fields.get("tokens_per_s_per_npu") or fields["tokens_per_s_per_card"] / dies
        step_us = tokens / published * 1e6
    kind = "headline" if "headline" in fields else fields.get("impl", "unsaid")
    kind = "tuning" if "samples_per_s" in fields else kind
    name = fields.get("name") or f"{fields['model']} {fields['size']} {fields['seq'] // 1024}K"
    return Row(name, fields["model"], kind, job, step_us, fields["num_npus"], MappingProxyType(dict(fields)))


def _job(fields: Mapping[str, Any]) -> Job:
    flags = set(fields["flags"].split(","))
    model, layout = _model(fields), _layout(fields, flags)
    tp_overlap = "mc2" if "mc2" in flags else "coc" if "coc" in flags else "none"
    half = "fp16" if "fp16" in flags else "bf16"
    return Job(
        name=f"{fields['model']}-{fields['size']}",
        model=model,
        cluster=_cluster(fields),
        batch=Batch(seq_len=fields["seq"], mbs=fields["micro_batch"], gbs=fields["global_batch"]),
        layout=layout,
        precision=Precision(params=half, masters="low_bits" if "RFP" in flags else "fp32"),
        memory=Memory(
            recompute=_recompute(fields["recompute"], flags),
            distributed_optimizer="DO" in flags,
            swap_attention="swapA" in flags,
            swap_optimizer="swapO" in flags,
            plain=_plain(fields, flags),
            fused_accumulation="noGAF" not in flags,
        ),
        comm=Comm(
            overlap_grad_reduce="OGR" in flags,
            overlap_param_gather="OPG" in flags,
            moe_dispatcher=fields.get("dispatcher", "allgather"),
            tp_overlap=tp_overlap if layout.sp else "none",
        ),
        adapter=Lora(rank=fields["lora_rank"]) if "lora_rank" in fields else None,
    )


def _plain(fields: Mapping[str, Any], flags: set[str]) -> tuple[Any, ...]:
    gelu = fields["model"] in GELU  # with LayerNorm, both of which torch has kernels for
    plain = {
        "attention": _is_one_of(fields, ALIBI),
        "norm": not gelu and "fRMS" not in flags,
        "activation": not gelu and "fSwiglu" not in flags,
    }
    return tuple(name for name, is_plain in plain.items() if is_plain)


def _cluster(fields: Mapping[str, Any]) -> Cluster:
    if fields.get("machine") == "a3":
        return cluster_preset("atlas-900-a3", fields["num_npus"] // 16)
    return cluster_preset("atlas-800t-a2", fields["num_npus"] // 8)


def _is_one_of(fields: Mapping[str, Any], names: Sequence[str]) -> bool:
    return fields["model"] in names or f"{fields['model']} {fields['size']}" in names


def _model(fields: Mapping[str, Any]) -> ModelSpec:
    if "preset" in fields:
        return model_preset(fields["preset"])
    heads, hidden = fields["heads"], fields["hidden"]
    plain = _is_one_of(fields, ALIBI)
    mixer = LATENT.get(fields["model"]) or Attention(
        heads=heads,
        kv_heads=fields.get("kv_heads", heads),
        head_dim=fields.get("head_dim", hidden // heads),
        positions="alibi" if plain else "none" if fields["model"] == "GPT3" else "rope",
    )
    gelu = fields["model"] in GELU
    activation, ffn = "gelu" if gelu else "swiglu", fields.get("ffn", 4 * hidden)
    dense = Block(mixer=mixer, feed_forward=Mlp(ffn_hidden=ffn, activation=activation))
    blocks = [Repeat(block=dense, count=fields.get("first_dense", fields["num_layers"]))]
    if "experts" in fields:
        width = fields.get("moe_ffn", ffn)
        shared = fields["shared_experts"] * width if "shared_experts" in fields else None
        moe = Moe(
            experts=fields["experts"], topk=fields["topk"], ffn_hidden=width, shared_ffn=shared, activation=activation
        )
        count = fields["num_layers"] - fields.get("first_dense", 0)
        blocks = [
            *blocks[: fields.get("first_dense", 0)],
            Repeat(block=Block(mixer=mixer, feed_forward=moe), count=count),
        ]
    scaled = fields["model"] == "MiniCPM"
    return ModelSpec(
        name=fields["model"],
        vocab_size=fields.get("vocab") or VOCABULARIES[fields["model"]],
        hidden=hidden,
        max_position=fields["seq"],
        blocks=tuple(blocks),
        norm="layer" if gelu else "rms",
        learned_positions=fields["model"] == "GPT3",
        embedding_scale=12.0 if scaled else 1.0,
        residual_scale=1.4 / fields["num_layers"] ** 0.5 if scaled else 1.0,
        logit_scale=256 / hidden if scaled else 1.0,
        tied_embeddings=_is_one_of(fields, TIED),
    )


def _layout(fields: Mapping[str, Any], flags: set[str]) -> Layout:
    layers, pp, tp = fields["num_layers"], fields["pp"], fields["tp"]
    chunk = fields.get("layers_per_virtual_stage")
    return Layout(
        tp=tp,
        pp=pp,
        vpp=layers // pp // chunk if chunk else 1,
        cp=fields["cp"],
        cp_algorithm=CP_ALGORITHMS[fields.get("cp_algo", "megatron_cp_algo")],
        ep=fields["ep"],
        etp=fields.get("etp", tp if "experts" in fields else 1),
        sp=tp > 1 and ("SP" in flags or "experts" in fields),
        schedule=fields.get("schedule"),
        noop_layers=tuple(fields.get("noop_layers", ())),
        stages=tuple(map(int, fields["layer_list"].split(","))) if "layer_list" in fields else None,
    )


def _recompute(text: str, flags: set[str]) -> FullRecompute | SelectiveRecompute | None:
    parts = ("activation",) if "rcAct" in flags else ()
    if text == "-":
        return SelectiveRecompute(modules=parts) if parts else None
    _, method, count = text.split("/")
    return FullRecompute(method=method, num_layers=int(count), modules=parts)  # pyright: ignore[reportArgumentType]


@cache
def gpu_outcomes() -> tuple[Outcome, ...]:
    """Those rows, planned."""
    return tuple(Outcome(row, row.step_us / plan(row.job).time.step_us - 1) for row in gpu_rows())


@cache
def gpu_rows() -> tuple[Row, ...]:
    """Korthikanti et al.'s steps on A100, which nothing here is fitted to."""
    lines = (DATA / "korthikanti_time.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_gpu_row(json.loads(line)) for line in lines)


def _gpu_row(fields: Mapping[str, Any]) -> Row:
    sp = fields["extra"]["sequence_parallel"]
    hidden, heads = fields["hidden"], fields["heads"]
    block = Block(
        mixer=Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, positions="none"),
        feed_forward=Mlp(ffn_hidden=fields["ffn"], activation="gelu"),
    )
    model = ModelSpec(
        name=fields["model"],
        vocab_size=fields["vocab"],
        hidden=hidden,
        max_position=fields["seq"],
        blocks=(Repeat(block=block, count=fields["layers"]),),
        norm="layer",
        learned_positions=True,
        tied_embeddings=True,
    )
    job = Job(
        name=fields["model"],
        model=model,
        cluster=cluster_preset("dgx-a100", fields["num_devices"] // 8),
        batch=Batch(seq_len=fields["seq"], mbs=fields["mbs"], gbs=fields["gbs"]),
        layout=Layout(tp=fields["tp"], pp=fields["pp"], vpp=fields["vpp"] or 1, sp=sp),
        precision=Precision(params="fp16"),
        memory=Memory(
            recompute=SelectiveRecompute() if sp else FullRecompute(),
            distributed_optimizer=False,
            plain=("attention",),
            fused_accumulation=True,
        ),
        objective=Pretraining(dropout=0.1),
    )
    name = f"{fields['model']}, {'selective, sp' if sp else 'full recompute'}"
    return Row(name, fields["model"], "A100", job, fields["value"] * 1e6, fields["num_devices"], fields)


def main() -> None:
    """Print what is fitted, a run a line."""
    for row in rows():
        if row.fitted:
            run = {"name": row.name, "family": row.family, "step_ms": row.step_us / 1e3, "job": unstructure(row.job)}
            sys.stdout.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
