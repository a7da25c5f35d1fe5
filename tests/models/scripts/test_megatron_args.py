"""Jobs as arguments, which read back as the same jobs."""

from itertools import chain

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import LoweringError
from ridgeline.core.job import (
    Dpo,
    FullRecompute,
    Lora,
    Memory,
    Precision,
    Pretraining,
    Profile,
    SelectiveRecompute,
    Sft,
)
from ridgeline.models.jobs import job_of, preset
from ridgeline.models.scripts.job import import_command
from ridgeline.models.scripts.megatron_args import megatron_args
from ridgeline.models.scripts.shell import Command
from ridgeline.models.zoo import model_names
from tests.models.scripts.launches import QWEN3_MOE
from tests.models.scripts.reading import EXPERTS, USUAL, back, imported_of

NO_FLAGS = frozenset(
    (
        *("baichuan-13b", "baichuan2-7b", "baichuan2-13b", "bloom", "gemma", "gemma2", "glm_moe_dsa"),
        *("gpt2", "gpt_oss", "grok-1", "internlm3", "minicpm3", "minimax_m2", "phi3", "phimoe", "plm"),
        *("hunyuan", "hunyuan_v1_dense", "hunyuan_v1_moe", "qwen3_next", "longcat_flash", "step3p5"),
        *("minicpm-2b-128k", "mamba2", "nemotron_h"),
        *(f"internlm2.5-{size}" for size in ("1.8b-chat", "7b", "20b", "20b-chat")),
    )
)
"""Families and models with something that no flag of Megatron-LM or MindSpeed-LLM says, or none for all layers."""

IN_TWO_FAMILIES = frozenset(("qwen-72b", "qwen1.5-72b-chat"))
"""The same model, once as `qwen` and once as `qwen2`."""


@pytest.mark.parametrize("name", model_names())
def test_a_preset_comes_back(name):
    """Exported and imported, a published model's job has the same model, layout, batch and training."""
    job = preset(name, nodes=16)
    if NO_FLAGS & {job.model.family, name}:
        with pytest.raises(LoweringError, match=r"no flag says it|the flags say one"):
            back(job)
        return
    again = back(job)
    # Several published models are equal in all but their name, which no flag says, some in two families.
    family = job.model.family if name in IN_TWO_FAMILIES else again.model.family
    again = attrs.evolve(again, model=attrs.evolve(again.model, name=name, family=family))
    for part in ("model", "layout", "batch", "precision", "memory", "comm", "optimizer", "objective"):
        assert getattr(again, part) == getattr(job, part)


def test_profiles_and_determinism_come_over():
    """MindSpeed-LLM's flags are read, and written again."""
    words = tuple(chain.from_iterable(megatron_args(preset("llama2-7b"))))

    def with_flags(flags):
        return import_command(Command("pretrain_gpt.py", (("nproc_per_node", "8"),), (*words, *flags.split())))

    flags = "--npu-deterministic --profile --profile-step-start 5 --profile-step-end 7 --profile-ranks 0 3"
    flags += " --profile-level level1 --profile-with-cpu --profile-record-shapes --profile-save-path ./kept"
    imported = with_flags(flags)
    profile = Profile(start=5, end=7, ranks=(0, 3), level="level1", cpu=True, shapes=True, output="./kept")
    job = job_of({"name": "x", **imported.plain})
    assert (job.profile, job.run.deterministic) == (profile, True)
    assert not [entry for entry in imported.entries if "profile" in entry.flag and entry.fate != "mapped"]
    assert (back(job).profile, back(job).run.deterministic) == (profile, True)
    assert with_flags("--profile").plain["profile"]["end"] == 12
    assert "profile" not in with_flags("--profile-with-cpu").plain


@settings(deadline=None, max_examples=40)
@given(
    degrees=st.tuples(*[st.sampled_from((1, 2, 4))] * 3),
    chunks=st.sampled_from((1, 2)),
    noop=st.sampled_from(((), (1,), (0, 3))),
    layers=st.lists(st.integers(0, 9), min_size=8, max_size=8),
    rest=st.fixed_dictionaries(
        {
            "ep": st.sampled_from((1, 2, 8)),
            "etp": st.sampled_from((1, 2)),
            "sp": st.booleans(),
            "cp_algorithm": st.sampled_from(("ring", "ulysses", "hybrid", "kv_allgather")),
            "repeat_kv": st.booleans(),
            "microbatch_group_size": st.none() | st.integers(1, 9),
            "vocab_multiple": st.integers(1, 128),
            "order": st.sampled_from(("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp")),
        }
    ),
)
def test_a_layout_comes_back(degrees, chunks, noop, layers, rest):
    """Whatever the layout, with uneven stages and noop layers."""
    job = preset("qwen3-30b-a3b", nodes=8)
    tp, pp, cp = degrees
    stages = tuple(layers[: pp * chunks])
    rest["sp"] = rest["sp"] and tp > 1  # elsewhere upstream turns it off
    if rest["cp_algorithm"] == "hybrid":
        cp, rest["ulysses"] = 4, 2
    layout = attrs.evolve(job.layout, tp=tp, pp=pp, cp=cp, vpp=chunks, stages=stages, noop_layers=noop, **rest)
    job = attrs.evolve(job, layout=layout, batch=attrs.evolve(job.batch, gbs=64 * 3))
    again = back(job)
    assert again.model.blocks == job.model.blocks
    assert (again.layout, again.batch) == (job.layout, job.batch)


@settings(deadline=None, max_examples=40)
@given(
    masters=st.sampled_from(("fp32", "low_bits")),
    moments=st.sampled_from(("fp32", "bf16")),
    grads=st.sampled_from(("fp32", "bf16")),
    swaps=st.tuples(st.booleans(), st.booleans()),
    recompute=st.sampled_from(
        (
            None,
            FullRecompute(method="block", num_layers=2, per="rank"),
            FullRecompute(num_layers=2),
            SelectiveRecompute(modules=("activation", "layernorm")),
        )
    ),
    objective=st.sampled_from((Sft(), Sft(padded=False), Dpo(loss="ipo", beta=0.2), Dpo(loss="simpo", padded=False))),
    adapter=st.sampled_from((None, Lora(rank=8, alpha=16.0), Lora(targets=("linear_qkv",), base="nf4"))),
)
def test_memory_and_tuning_come_back(masters, moments, grads, swaps, recompute, objective, adapter):
    """What storage, recompute and fine-tuning a job asks for is what its flags say."""
    swaps_attention = swaps[1] and not isinstance(recompute, FullRecompute)
    memory = Memory(recompute=recompute, swap_optimizer=swaps[0], swap_attention=swaps_attention)
    job = attrs.evolve(
        preset("llama2-7b"),
        precision=Precision(masters=masters, moments=moments, grads=grads),
        memory=memory,
        objective=objective,
        adapter=adapter,
    )
    again = back(job)
    assert (again.precision, again.memory) == (job.precision, job.memory)
    assert (again.objective, again.adapter) == (job.objective, job.adapter)


@pytest.mark.parametrize(
    ("flags", "dropout"),
    [
        ("--hidden-dropout 0.0 --attention-dropout 0", 0.0),
        ("--hidden-dropout 0.1 --attention-dropout 0.1", 0.1),
        ("", 0.1),
    ],
)
def test_dropout_is_what_upstream_drops(flags, dropout):
    """Which is a tenth where the script does not say, as Megatron-LM has it; exported, it is the same again."""
    imported = imported_of(f"{EXPERTS} {USUAL} {flags}")
    assert imported.plain["objective"]["dropout"] == dropout
    told = {entry.flag: entry for entry in imported.entries}
    assert told["--attention-dropout"].note.startswith("objective.dropout")
    job = job_of({"name": "x", **imported.plain})
    objective = back(job).objective
    assert isinstance(objective, Pretraining)
    assert objective.dropout == dropout


@pytest.mark.parametrize(
    ("flags", "rope"),
    [
        ("--rotary-percent 1.0", (1.0, False)),
        ("--rotary-percent 0.5", (0.5, False)),
        ("--partial-rotary-factor 0.25", (0.25, False)),
        ("--use-glm-rope --rotary-percent 0.5", (0.5, True)),  # ChatGLM3 pairs neighbours (_process_partial_rope)
    ],
)
def test_a_share_of_each_head_rotates(flags, rope):
    """Also when it is exported and read again."""
    still = "--hidden-dropout 0 --attention-dropout 0"
    job = job_of({"name": "x", **imported_of(f"{EXPERTS} {USUAL} {still} {flags}").plain})
    for one in (job, back(job)):
        mixer = one.model.blocks[0].block.mixer
        assert (mixer.rope.share, mixer.rope.interleaved) == rope


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sinks": True}, r"model.blocks\[0\].block.mixer.sinks=True: no flag says it"),
        ({"gate": "head"}, r"model.blocks\[0\].block.mixer.gate='head': no flag says it"),
    ],
)
def test_nothing_is_lost_in_silence(change, told):
    """A field that no flag says is told, with what would stand in its place."""
    job = preset("llama2-7b")
    run = job.model.blocks[0]
    block = attrs.evolve(run.block, mixer=attrs.evolve(run.block.mixer, **change))
    model = attrs.evolve(job.model, blocks=(attrs.evolve(run, block=block),))
    with pytest.raises(LoweringError, match=told):
        megatron_args(attrs.evolve(job, model=model))


def test_sparsemixer_comes_back():
    """MindSpeed-LLM's word for it; it weighs by itself, whatever the flags say of weights and losses."""
    text = QWEN3_MOE.replace("load-balancing-type aux_loss", "load-balancing-type sparsemixer_topk")
    text = text.replace("--moe-router-topk 8", "--moe-router-topk 2")
    job = job_of({"name": "x", **imported_of(text).plain})
    (moe,) = job.model.moes
    assert (moe.score, moe.topk, moe.normalize_topk, moe.nearness, moe.aux_loss) == ("sparsemixer", 2, False, 0.01, 0.0)
    assert back(job).model.moes == (moe,)


def test_what_is_dropped_and_how_biases_move_comes_back():
    text = QWEN3_MOE.replace(
        "--moe-aux-loss-coeff 0.001",
        "--moe-aux-loss-coeff 0.001 --moe-expert-capacity-factor 1.5 --moe-token-drop-policy position"
        " --moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-bias-update-rate 0.01",
    )
    job = job_of({"name": "x", **imported_of(text).plain})
    (moe,) = job.model.moes
    assert (moe.capacity_factor, moe.drop, moe.expert_bias_rate) == (1.5, "position", 0.01)
    assert back(job).model.moes == (moe,)


@pytest.mark.parametrize(
    "words",
    [
        "--moe-permutation-async-comm --moe-allgather-overlap-comm --moe-token-dispatcher-type allgather",
        "--moe-shared-expert-intermediate-size 512 --moe-shared-expert-overlap",
        "--moe-shared-expert-intermediate-size 512 --moe-alltoall-overlap-comm --moe-token-dispatcher-type alltoall",
        "--moe-fb-overlap --moe-token-dispatcher-type alltoall",
    ],
)
def test_how_tokens_reach_their_experts_comes_back(words):
    job = job_of({"name": "x", **imported_of(f"{QWEN3_MOE.rstrip()} {words}").plain})
    assert job.comm.moe_overlap or job.comm.moe_fb_overlap
    assert back(job).comm == job.comm
