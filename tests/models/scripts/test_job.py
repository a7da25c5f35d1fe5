"""Arguments to jobs."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import SpecError
from ridgeline.core.job import FullRecompute, Lora, Precision, Sft
from ridgeline.models.jobs import job_of, preset
from ridgeline.models.scripts.flags import FLAGS
from ridgeline.models.scripts.job import CONTRADICTIONS, import_command
from ridgeline.models.scripts.model import named
from ridgeline.models.scripts.shell import Command, training_command
from tests.models.scripts.launches import LLAMA2_7B, QWEN3_MOE
from tests.models.scripts.reading import EXPERTS, imported_of


def test_a_script_says_how_memory_is_saved():
    """The flags of MindSpeed-LLM's feature list, each in its field."""
    text = LLAMA2_7B.replace(
        "--bf16",
        "--bf16 --reuse-fp32-param --o2-optimizer --recompute-granularity full --recompute-method block "
        "--recompute-num-layers 2 --enable-recompute-layers-per-pp-rank --recompute-activation-function "
        "--loss-compute-mode chunk --loss-chunk-size 512 --stage sft --lora-r 8 --lora-target-modules dense --qlora",
    )
    job = job_of({"name": "x", **imported_of(text).plain})
    assert job.precision == Precision(masters="low_bits", moments="bf16")
    assert job.memory.recompute == FullRecompute(method="block", num_layers=2, per="rank", modules=("activation",))
    assert job.memory.loss_chunk == 512
    assert job.objective == Sft()
    assert job.adapter == Lora(rank=8, targets=("linear_proj",), base="nf4")


def test_scripts_give_the_published_models():
    """The dimensions in a script are those of the model it trains, and every flag has a fate."""
    dense, moe = imported_of(LLAMA2_7B), imported_of(QWEN3_MOE)
    assert not dense.problems + moe.problems
    jobs = [named(job_of({"name": "x", **one.plain})) for one in (dense, moe)]
    assert jobs[0].model == preset("llama2-7b").model
    assert jobs[0].batch.packing == "eod_reset"
    assert jobs[0].optimizer.warmup_steps == 20
    assert jobs[1].cluster.world_size == 16
    assert (jobs[1].layout.pp, jobs[1].layout.ep, jobs[1].layout.etp) == (2, 8, 1)
    fates = {entry.flag: entry.fate for entry in moe.entries}
    assert fates["--brand-new-flag"] == "not understood"
    assert fates["--swap-optimizer"] == "mapped"
    assert jobs[1].comm.moe_dispatcher == "alltoall_seq"
    asked = {word for word in training_command(QWEN3_MOE, source="s").arguments if word.startswith("--")}
    assert asked <= fates.keys()


def test_all_faults_at_once():
    """Ranks that do not divide, two precisions and a word for a number are told together."""
    text = LLAMA2_7B.replace("TP=1", "TP=3").replace("--bf16", "--bf16 --fp16 --seed one")
    faults = "\n".join(map(str, imported_of(text).problems))
    assert "world_size=8: must be a multiple of tp=3 * pp=2 * cp=1 = 6" in faults
    assert "--bf16=True: contradicts --fp16" in faults
    assert "--seed='one': must be an integer" in faults


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(FLAGS)), st.sampled_from(("1", "0", "-1", "3,x", "inf", "$V", "", "a", "[1]*2"))
        ),
        max_size=12,
    )
)
def test_any_words_are_answered(pairs):
    """Whatever the flags hold, the answer is a job or the faults, and every flag has a fate or a fault."""
    words = [word for name, value in pairs for word in (f"--{name}", value)]
    text = Command("pretrain_gpt.py", (), training_command(LLAMA2_7B, source="s").arguments + tuple(words))
    imported = import_command(text)
    with contextlib.suppress(SpecError):
        job_of({"name": "x", **imported.plain})
    told = {entry.flag for entry in imported.entries} | {problem.path for problem in imported.problems}
    assert {f"--{name}" for name, _ in pairs} <= told


def test_every_flag_stands_once():
    """No flag has two fates."""
    from ridgeline.models.scripts.flags import _GROUPS

    assert len(FLAGS) == sum(len(names.split()) for _, _, names in _GROUPS)


def test_a_fault_is_told_once():
    """However many layers and fields need the flag."""
    text = LLAMA2_7B.replace("--bf16", "--bf16 --num-experts many").replace("--train-iters 2000", "--train-iters some")
    faults = [str(problem) for problem in imported_of(text).problems]
    assert sorted(faults) == ["--num-experts='many': must be an integer", "--train-iters='some': must be an integer"]


def test_experts_are_placed_as_upstream_places_them():
    """Over ep*tp ranks whole, or over ep ranks and each split over tp; behind the first k layers, noop layers counted.

    Source:
        Ascend/MindSpeed-LLM c77308a1: core/transformer/transformer_block.py (``_transformer_block_build_layers``) and
        core/transformer/moe/moe_layer.py (``num_local_experts``).
    """
    experts = f"{EXPERTS} --num-experts 16 --tensor-model-parallel-size 2 --expert-model-parallel-size 4"
    split, whole = imported_of(experts).plain["layout"], imported_of(f"{experts} --moe-tp-extend-ep").plain["layout"]
    assert (split["ep"], split["etp"]) == (4, 2)
    assert (whole["ep"], whole["etp"]) == (8, 1)
    for flags, kinds in (
        ("", "moe*8"),
        ("--first-k-dense-replace -1 --moe-layer-freq -1", "moe*8"),
        ("--first-k-dense-replace 0 --moe-layer-freq 1", "moe*8"),
        ("--first-k-dense-replace 3 --moe-layer-freq 1", "mlp*3 moe*5"),
        ("--first-k-dense-replace 2 --moe-layer-freq 2", "mlp*2 moe*1 mlp*1 moe*1 mlp*1 moe*1 mlp*1"),
        ("--first-k-dense-replace 3 --moe-layer-freq 1 --noop-layers 0,7", "mlp*2 moe*4"),
    ):
        blocks = imported_of(f"{experts} {flags}").plain["model"]["blocks"]
        assert " ".join(f"{run['block']['feed_forward']['kind']}*{run['count']}" for run in blocks) == kinds


def test_layers_share_a_choice_of_positions():
    """By the rule of GLM-5.2's published launch, which its checkpoints follow too."""
    latent = "--multi-latent-attention --q-lora-rank 16 --kv-lora-rank 16 --enable-dsa-indexer"
    imported = imported_of(f"{EXPERTS} {latent} --index-topk-freq 4 --index-skip-topk-offset 3")
    kinds = [
        (run["block"]["mixer"]["indexer"].get("shared", False), run["count"])
        for run in imported.plain["model"]["blocks"]
    ]
    assert kinds == [(False, 3), (True, 3), (False, 1), (True, 1)]


def test_flags_of_experts_that_contradict():
    """Each is named with what it contradicts."""
    told = imported_of(f"{EXPERTS} --moe-tp-extend-ep").problems
    assert any("--moe-tp-extend-ep=True: needs --num-experts" in str(problem) for problem in told)
    told = imported_of(
        f"{EXPERTS} --num-experts 8 --moe-tp-extend-ep --expert-tensor-parallel-size 2 --first-k-dense-replace 8"
    ).problems
    assert any("--expert-tensor-parallel-size='2': contradicts --moe-tp-extend-ep" in str(one) for one in told)
    assert any("--first-k-dense-replace='8': must be < num_layers=8" in str(one) for one in told)


@pytest.mark.parametrize(
    ("flags", "fates"),
    [
        ("--cp-window-size 1 --optimizer adam", {"--cp-window-size": "no effect", "--optimizer": "no effect"}),
        ("--optimizer sgd", {"--optimizer": "not expressible"}),
        ("--hidden-dropout 0.2 --attention-dropout 0.1", {"--hidden-dropout": "approximated"}),
        ("--stage sft --hidden-dropout 0.2", {"--hidden-dropout": "not expressible"}),
        ("--stage sft --hidden-dropout 0.0 --attention-dropout 0", {"--hidden-dropout": "mapped"}),
    ],
)
def test_a_fate_depends_on_the_value(flags, fates):
    """A value that asks for nothing has no effect; one that a job cannot say is told."""
    found = {entry.flag: entry.fate for entry in imported_of(EXPERTS + flags).entries}
    assert {flag: found[flag] for flag in fates} == fates


def test_a_misspelt_flag_is_told_with_the_nearest():
    entries = {entry.flag: entry for entry in imported_of(f"{EXPERTS} --sequence-paralel").entries}
    assert entries["--sequence-paralel"].note.endswith("did the script mean --sequence-parallel?")


def test_warmup_is_said_once():
    """In iterations or as a share, as Megatron-LM demands; a switch that is given is told as such."""
    told = imported_of(f"{EXPERTS} --lr-warmup-iters 10 --lr-warmup-fraction 0.1 --bf16 --fp16").problems
    assert {str(one).split(";")[0] for one in told} >= {
        "--lr-warmup-fraction='0.1': contradicts --lr-warmup-iters",
        "--bf16=True: contradicts --fp16",
    }


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--sequence-parallel", ("layout", "sp"), False),
        ("--sequence-parallel --tensor-model-parallel-size 2", ("layout", "sp"), True),
        ("--swap-attention", ("memory", "swap_attention"), True),
        ("--swap-attention --recompute-granularity full --recompute-method block", ("memory", "swap_attention"), False),
    ],
)
def test_what_upstream_turns_off_is_off(flags, field, value):
    """Sequence parallel without tensor parallel; moving what whole layers recompute; the flag is told to do nothing."""
    imported = imported_of(EXPERTS + flags)
    assert imported.plain[field[0]][field[1]] is value
    fate = next(entry.fate for entry in imported.entries if entry.flag == f"--{flags.split()[0][2:]}")
    assert fate == ("mapped" if value else "no effect")


@pytest.mark.parametrize(
    ("words", "schedule", "slices", "overlap"),
    [
        ("--schedules-method dualpipev --moe-fb-overlap", "dualpipe_v", 1, True),
        ("--schedules-method dualpipev --dualpipev-dw-detach", "dualpipe_v_split", 1, False),
        ("--enable-seq1f1b", "seq1f1b", 4, False),
        ("--enable-seq1f1b --seq1f1b-splits 2", "seq1f1b", 2, False),
        ("--moe-fb-overlap", None, 1, True),
    ],
)
def test_mindspeeds_schedules_are_named(words, schedule, slices, overlap):
    """DualPipeV with either cooldown, Seq1F1B with its slices, and forwards beside backwards."""
    imported = imported_of(f"{QWEN3_MOE.rstrip()} {words}")
    assert not imported.problems
    layout = imported.plain["layout"]
    assert (layout.get("schedule"), layout.get("slices", 1)) == (schedule, slices)
    assert imported.plain["comm"]["moe_fb_overlap"] == overlap


SHARED = "--moe-shared-expert-intermediate-size 512"


@pytest.mark.parametrize(
    ("words", "overlap"),
    [
        (f"{SHARED} --moe-shared-expert-overlap", ["shared_experts"]),
        (f"{SHARED} --moe-alltoall-overlap-comm", ["shared_experts", "weight_gradients"]),
        ("--moe-alltoall-overlap-comm --moe-permutation-async-comm", ["weight_gradients"]),
        ("--moe-permutation-async-comm --moe-token-dispatcher-type allgather", ["permutation"]),
        (
            f"{SHARED} --moe-permutation-async-comm --moe-allgather-overlap-comm --moe-token-dispatcher-type allgather",
            ["permutation", "shared_experts", "weight_gradients"],
        ),
    ],
)
def test_what_runs_beside_tokens_ways_is_named(words, overlap):
    imported = imported_of(f"{QWEN3_MOE.rstrip()} {words}")
    assert not imported.problems
    assert imported.plain["comm"]["moe_overlap"] == overlap


@pytest.mark.parametrize(
    "words",
    [
        "--moe-allgather-overlap-comm",
        "--moe-alltoall-overlap-comm --moe-token-dispatcher-type allgather",
        "--moe-shared-expert-overlap --moe-token-dispatcher-type allgather",
    ],
)
def test_an_overlap_goes_with_its_dispatcher(words):
    (problem,) = imported_of(f"{QWEN3_MOE.rstrip()} {words}").problems
    assert str(problem).startswith(f"{words.split()[0]}=True: goes with another dispatcher; use --moe-token-dispatcher")


@pytest.mark.parametrize("pair", CONTRADICTIONS, ids=" ".join)
def test_contradictions_are_told(pair):
    """What upstream refuses together is refused, with both flags; each alone is not."""
    values = {"nothing": "", "one": " 2", "many": " 2"}
    one, other = (f" --{name}{values[FLAGS[name].takes]}" for name in pair)
    told = "\n".join(map(str, imported_of(EXPERTS + one + other).problems))
    assert f"--{pair[0]}=" in told
    assert f"contradicts --{pair[1]}; keep one of the two" in told
    assert "contradicts" not in "\n".join(map(str, imported_of(EXPERTS + one).problems))


@pytest.mark.parametrize(
    ("words", "when"), [("", "backward"), ("--recompute-in-advance", "advance"), ("--recompute-in-bubble", "bubble")]
)
def test_moved_recomputes_are_read(words, when):
    imported = imported_of(f"{QWEN3_MOE.rstrip()} {words}")
    assert not imported.problems
    assert imported.plain["memory"]["recompute_when"] == when
