"""A program is data: it can be printed, compared and sent, and says all that its rank does."""

import copy
import pickle
import subprocess
import sys

import attrs
import pytest

from ridgeline.core.errors import LoweringError, SpecError
from ridgeline.core.job import Dpo, FullRecompute, Lora, Memory, Precision
from ridgeline.core.model import Attention, Block, Mlp, Moe, Repeat
from ridgeline.models.lowerable import check_lowerable, lowering_faults
from ridgeline.models.program import DataSlice, lower
from ridgeline.parallel.plan import plan
from tests.parity.small import MLP, MODELS, MOE, job_of

JOB = job_of(
    MODELS["mixed"], world_size=4, layout__tp=2, layout__sp=True, layout__pp=2, layout__ep=2, layout__stages=(1, 3)
)


def test_programs_are_values():
    one, other = lower(plan(JOB), 3), lower(plan(JOB), 3)
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert one != lower(plan(JOB), 2)


def test_a_program_prints_as_a_table():
    lines = str(lower(plan(JOB), 3)).splitlines()
    assert lines[:6] == [
        "rank 3 of 4",
        "  tp_rank=1 cp_rank=0 dp_rank=0 pp_rank=1 etp_rank=0 ep_rank=1 edp_rank=0",
        "groups",
        "  tp: 2 3",
        "  cp: 3",
        "  dp: 3",
    ]
    assert "chunk 0: stage 1: 1, 2, 3, head" in lines
    expert = "mlp.experts.local_experts"
    whole = f"decoder.layers.1.{expert}.3.linear_fc1.weight (56, 36)"
    assert f"  decoder.layers.0.{expert}.0.linear_fc1.weight (56, 36) of {whole}" in lines
    assert "  output_layer.weight (49, 36) of embedding.word_embeddings.weight (98, 36)" in lines
    assert "  rms_norm: torch" in lines
    assert "  pipeline_model_parallel_layout: Et|t*3L" in lines
    assert "  num_microbatches: 4" in lines
    assert lines[-1] == "actions: 1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"


def test_padding_of_the_vocabulary_lies_at_its_end():
    layout = attrs.evolve(JOB.layout, vocab_multiple=32)
    programs = [lower(plan(attrs.evolve(JOB, layout=layout)), rank) for rank in range(4)]
    assert {program.padded_vocab for program in programs} == {128}
    assert [program.num_pads for program in programs] == [0, 31, 0, 31]
    all_pads = attrs.evolve(JOB, layout=attrs.evolve(layout, vocab_multiple=128))
    assert lower(plan(all_pads), 1).num_pads == 128


def test_each_sample_of_a_step_is_read_by_one_dp_rank():
    slices = [DataSlice(dp_rank=r, dp=3, mbs=2, num_microbatches=4, seq_len=8) for r in range(3)]
    read = [sample for part in slices for samples in part.samples(100) for sample in samples]
    assert sorted(read) == list(range(100, 124))


def test_samples_are_those_of_megatrons_sampler():
    slices = [DataSlice(dp_rank=r, dp=2, mbs=2, num_microbatches=2, seq_len=8) for r in range(2)]
    # Megatron-LM, MegatronPretrainingSampler: a run of mbs*dp samples, of which each dp rank takes mbs in turn.
    runs = [list(range(first, first + 4)) for first in (16, 20)]
    for part in slices:
        assert [list(s) for s in part.samples(16)] == [run[2 * part.dp_rank : 2 * part.dp_rank + 2] for run in runs]


def test_what_cannot_be_lowered_is_named_at_once():
    block = MODELS["mixed"].blocks[0].block
    wider = attrs.evolve(block, mixer=attrs.evolve(block.mixer, head_dim=6, window=4, qk_norm_over="layer"))
    experts = attrs.evolve(block, feed_forward=attrs.evolve(MOE, topk=3))
    blocks = tuple(Repeat(block=b, count=1) for b in (block, wider, experts, attrs.evolve(experts, feed_forward=MOE)))
    model = attrs.evolve(MODELS["mixed"], blocks=blocks, norm="layer")
    with pytest.raises(LoweringError) as caught:
        check_lowerable(job_of(model, layout__cp=2, layout__cp_algorithm="kv_allgather"))
    assert str(caught.value).splitlines() == [
        "layout.cp_algorithm='kv_allgather': is planned only, nothing runs it yet; use 'ring' or 'ulysses' or 'hybrid'",
        "model.blocks.feed_forward.topk=[2, 3]: Megatron-core has one for all layers; use one value",
        "model.blocks.mixer.qk_norm_over=['head', 'layer']: Megatron-core has one way to sum their gradients for all "
        "layers; use one value",
    ]


def test_what_cannot_share_samples_is_named_with_a_way_out():
    faults = {
        model: lowering_faults(job_of(MODELS[model], layout__cp=2, batch__packing="eod_reset"))
        for model in ("dense", "latent", "delta", "indexed", "mamba", "biased experts")
    }
    packed = (
        "batch.packing='eod_reset': keys and values of packed documents do not go round; "
        "use layout.cp_algorithm='ulysses'"
    )
    assert {fault for found in faults.values() for fault in found[:1]} == {packed}
    assert {model: found[1:] for model, found in faults.items()} == {
        "dense": (),
        "latent": (),
        "delta": ("layout.cp=2: gated_delta_net runs over its own part of a sample only; use 1",),
        "indexed": ("layout.cp=2: an indexer chooses among its own part of a sample only; use 1",),
        "mamba": ("layout.cp=2: mamba2 runs over its own part of a sample only; use 1",),
        "biased experts": (
            "layout.cp_algorithm='ring': attention with ALiBi, a softcap or sinks is not merged; use 'ulysses'",
        ),
    }


def test_what_only_the_first_stage_does_to_an_embedding_is_refused_beside_multi_token_prediction():
    """The last stage embeds too, without those tables; nothing is left out in silence."""
    for trait in ("learned_positions", "embedding_norm"):
        model = attrs.evolve(MODELS["dense"], mtp=1, **{trait: True})
        with pytest.raises(LoweringError, match=f"model.{trait}=True: has no lowering beside mtp=1"):
            check_lowerable(job_of(model))
    check_lowerable(job_of(attrs.evolve(MODELS["dense"], mtp=1)))


def test_keys_are_shared_in_the_shape_they_were_made_in():
    own, sharing = (run.block for run in MODELS["shared kv"].blocks[:2])
    narrow = attrs.evolve(sharing, mixer=attrs.evolve(sharing.mixer, kv_heads=1))
    blocks = tuple(Repeat(block=block, count=1) for block in (own, narrow))
    match = "kv_heads=1, head_dim=10: keys and values are shared in the shape, 2 of 10, they are made in; use that"
    with pytest.raises(LoweringError, match=match):
        check_lowerable(job_of(attrs.evolve(MODELS["shared kv"], blocks=blocks)))


def test_layers_of_one_part_are_refused_where_they_have_no_meaning():
    """A sandwich needs both parts, and a state space stands alone."""
    alone = MODELS["mamba"].blocks[0].block
    for block, match in (
        (attrs.evolve(alone, feed_forward=MLP), "model.blocks.mixer='mamba2': has no lowering beside a feed_forward"),
        (attrs.evolve(alone, norms="sandwich"), "model.blocks.norms='sandwich': has no lowering in a layer of one"),
    ):
        with pytest.raises(LoweringError, match=match):
            check_lowerable(job_of(attrs.evolve(MODELS["mamba"], blocks=(Repeat(block=block, count=2),))))


def test_memory_that_nothing_runs_yet_is_refused_by_name():
    """What a plan counts and the runtime cannot do, each field once."""
    recompute = FullRecompute(method="block", per="rank", modules=("activation",))
    job = attrs.evolve(
        job_of(MODELS["dense"]),
        precision=Precision(params="fp16", grads="fp16"),
        memory=Memory(recompute=recompute, swap_optimizer=True, loss="copied"),
        objective=Dpo(),
        adapter=Lora(base="nf4"),
    )
    with pytest.raises(LoweringError) as caught:
        check_lowerable(job)
    lines = str(caught.value).splitlines()
    assert [line.split("=")[0].split(":")[0] for line in lines] == [
        *("precision.params", "precision.grads", "memory.swap_optimizer", "memory.loss", "objective.kind"),
        "adapter.base",
        *("memory.recompute", "memory.recompute.modules", "memory.recompute.modules"),
    ]
    assert lines[0] == "precision.params='fp16': is planned only, nothing runs it yet; use 'bf16' or 'fp32'"


def test_adapters_of_split_experts_are_refused():
    """One of attention's linears has one; experts' have none where etp splits them."""
    layout = {"layout__tp": 2, "layout__sp": True, "layout__etp": 2}
    job = attrs.evolve(job_of(MODELS["moe"], world_size=2, **layout), adapter=Lora())
    with pytest.raises(
        LoweringError, match=r"layout.etp=2: experts' adapters have no lowering .* leave linear_fc1 and"
    ):
        check_lowerable(job)
    check_lowerable(attrs.evolve(job, adapter=Lora(targets=("linear_qkv", "linear_proj"))))


def test_window_and_rope_may_differ_from_layer_to_layer():
    attention = Attention(heads=2, kv_heads=1, head_dim=4)
    blocks = tuple(
        Repeat(block=Block(mixer=attrs.evolve(attention, window=window), feed_forward=part), count=1)
        for window, part in ((None, Mlp(ffn_hidden=8)), (3, Moe(experts=2, topk=1, ffn_hidden=4, normalize_topk=False)))
    )
    check_lowerable(job_of(attrs.evolve(MODELS["dense"], blocks=blocks)))


def test_no_such_rank():
    with pytest.raises(SpecError, match=r"rank=4: must lie in 0 \.\. world_size-1=3"):
        lower(plan(JOB), 4)


def test_lowering_loads_no_torch():
    code = (
        "import sys; from ridgeline.models.program import lower; from ridgeline.parallel.plan import plan;"
        "from tests.parity.small import MODELS, job_of; str(lower(plan(job_of(MODELS['moe'])), 0));"
        "assert not {'torch', 'numpy', 'megatron'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
