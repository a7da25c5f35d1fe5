"""Every element of every parameter has its owners and no others, and ranks hold what Megatron-core builds on them."""

from collections import Counter
from itertools import product

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.layout import Layout
from ridgeline.core.model import (
    Attention,
    Block,
    GatedDeltaNet,
    Indexer,
    LatentAttention,
    Mamba2,
    Mlp,
    Moe,
    Repeat,
    Rope,
)
from ridgeline.core.params import Param, fqn_of, model_params, num_params
from ridgeline.parallel.mesh import Mesh
from ridgeline.parallel.plan import plan
from ridgeline.parallel.shards import (
    local_shape,
    padded_vocab,
    rank_params,
    shard_of,
    slices_of,
    stage_rows,
)
from tests.parallel.examples import DENSE, MOE, dense_model, job_of, moe_model

WITH_EVERYTHING = dense_model(
    layers=6, attention={"qkv_bias": True, "out_bias": True, "qk_norm": True}, vocab_size=131, kv_heads=2
)
MIXED = moe_model(layers=6, dense_layers=2, tied_embeddings=True)


def elements(box):
    return product(*(range(start, stop) for start, stop in box))


ROLES = "embedding qkv qkv_bias gate_up gate_up_bias out down norm router up column fused conv replicated per_head"
roles = st.sampled_from(ROLES.split())
VECTORS = ("qkv_bias", "gate_up_bias", "norm", "per_head")
PARTS = {"fused": (4, 8, 4), "conv": (8, 8)}


@given(roles, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.booleans())
@settings(deadline=None)
def test_boxes_over_the_axis_cover_each_element_once(role, tp, etp, expert):
    shape = (16,) if role in VECTORS else (16, 8)
    experts = 2 if expert and role in ("gate_up", "up", "down") else 0
    param = Param("weight", shape, role, experts=experts, parts=PARTS.get(role, ()))
    mesh = Mesh(tp=tp, etp=etp, dp=4 // tp if tp < 4 else 1)
    shard = shard_of(param, Layout(tp=tp, etp=etp))
    owners = Counter(
        element for rank in range(mesh.world_size) for box in slices_of(shard, rank, mesh) for element in elements(box)
    )
    assert set(owners) == set(elements((0, size) for size in shard.global_shape))
    degree = getattr(mesh, shard.splits[0].axis) if shard.splits else 1
    assert set(owners.values()) == {mesh.world_size // degree}


@given(roles, st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_boxes_make_up_the_local_shape(role, tp):
    param = Param("weight", (16,) if role in VECTORS else (16, 8), role, parts=PARTS.get(role, ()))
    mesh = Mesh(tp=tp)
    shard = shard_of(param, Layout(tp=tp))
    for rank in range(tp):
        boxes = slices_of(shard, rank, mesh)
        assert sum(len(list(elements(box))) for box in boxes) == len(
            list(product(*map(range, local_shape(shard, mesh))))
        )


def test_gate_and_up_are_each_split():
    shard = shard_of(Param("mlp.linear_fc1.weight", (8, 3), "gate_up"), Layout(tp=2))
    assert slices_of(shard, 1, Mesh(tp=2)) == (((2, 4), (0, 3)), ((6, 8), (0, 3)))


@pytest.mark.parametrize(("vocab", "tp", "multiple", "rows"), [(100, 1, 1, 100), (101, 2, 1, 102), (101, 4, 32, 128)])
def test_the_vocabulary_is_padded_to_whole_parts(vocab, tp, multiple, rows):
    assert padded_vocab(vocab, Layout(tp=tp, vocab_multiple=multiple)) == rows


LATENT = LatentAttention(
    heads=4, q_lora_rank=24, kv_lora_rank=16, nope_head_dim=8, rope_head_dim=4, v_head_dim=12, rope=Rope()
)
EXPERTS = Moe(experts=8, topk=2, ffn_hidden=32, score="sigmoid", expert_bias=True, shared_ffn=48, shared_gate=True)
DEEPSEEK = attrs.evolve(
    DENSE,
    mtp=1,
    blocks=(
        Repeat(block=Block(mixer=LATENT, feed_forward=Mlp(ffn_hidden=96)), count=2),
        Repeat(block=Block(mixer=LATENT, feed_forward=EXPERTS), count=4),
    ),
)
MIXERS = (
    attrs.evolve(LATENT, indexer=Indexer(heads=2, head_dim=8, topk=4)),
    GatedDeltaNet(key_heads=2, value_heads=4, key_head_dim=8, value_head_dim=6),
    Mamba2(heads=8, head_dim=8, state=16, groups=2, bias=True),
    Attention(heads=8, kv_heads=4, head_dim=8, sinks=True, gate="element", qk_norm=True, qk_norm_over="layer"),
    Attention(heads=8, kv_heads=4, head_dim=8, gate="head", shares_kv=True, positions="alibi"),
)
HYBRID = attrs.evolve(
    DENSE,
    norm="layer",
    learned_positions=True,
    embedding_norm=True,
    head_bias=True,
    blocks=(
        *(Repeat(block=Block(mixer=mixer), count=1) for mixer in MIXERS),
        Repeat(block=Block(feed_forward=Mlp(ffn_hidden=96, activation="gelu", bias=True), norms="sandwich"), count=1),
        Repeat(block=Block(mixer=MIXERS[3], feed_forward=Mlp(ffn_hidden=32), shortcut=EXPERTS), count=1),
        Repeat(block=Block(mixer=MIXERS[3], feed_forward=Mlp(ffn_hidden=32)), count=1),
    ),
)
NOT_BUILT_YET = [
    (DEEPSEEK, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2, "layout__pp": 2}),
    (attrs.evolve(DEEPSEEK, tied_embeddings=True), {"layout__ep": 4, "layout__pp": 2}),
    (HYBRID, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    (HYBRID, {"layout__pp": 2, "layout__stages": (5, 3), "layout__etp": 2}),
]
LAYOUTS = [
    (DENSE, {"layout__tp": 2, "layout__pp": 2}),
    (DENSE, {"layout__tp": 8}),
    (WITH_EVERYTHING, {"layout__tp": 4, "layout__vocab_multiple": 16}),
    (WITH_EVERYTHING, {"layout__pp": 4, "layout__stages": (0, 3, 3, 0)}),
    (dense_model(layers=6, tied_embeddings=True), {"layout__pp": 2, "layout__vpp": 2, "layout__noop_layers": (0, 7)}),
    (MOE, {"layout__ep": 4, "layout__pp": 2}),
    (MOE, {"layout__tp": 4, "layout__sp": True, "layout__etp": 2, "layout__ep": 2}),
    (MIXED, {"layout__tp": 2, "layout__sp": True, "layout__ep": 4, "layout__pp": 2}),
]


@pytest.mark.parametrize(("model", "layout"), LAYOUTS + NOT_BUILT_YET)
def test_together_the_ranks_hold_every_parameter_and_no_other(model, layout):
    planned = plan(job_of(model, **layout))
    held = {param.fqn for rank in range(8) for param in rank_params(planned, rank)}
    expected = {
        fqn_of(layer, param, expert=expert)
        for layer, param in model_params(model)
        for expert in range(param.experts or 1)
    }
    assert held == expected


@pytest.mark.parametrize(("model", "layout"), LAYOUTS + NOT_BUILT_YET)
def test_shares_of_the_ranks_add_up_to_the_model(model, layout):
    planned = plan(job_of(model, **layout))
    mesh = planned.mesh
    total = 0.0
    for rank in range(8):
        for param in rank_params(planned, rank):
            copies = mesh.edp * mesh.etp if param.param.experts else mesh.dp * mesh.tp
            split = any(split.axis in ("tp", "etp") for split in param.shard.splits)
            degree = (mesh.etp if param.param.experts else mesh.tp) if split else 1
            size = len(list(product(*map(range, param.local_shape))))
            tied = 2 if model.shares_embedding and mesh.pp > 1 and param.param.role == "embedding" else 1
            total += size * degree / copies / tied
    padding = padded_vocab(model.vocab_size, planned.job.layout) - model.vocab_size
    assert total == pytest.approx(num_params(model) + padding * model.hidden * (1 if model.tied_embeddings else 2))


@pytest.mark.parametrize(("model", "layout"), LAYOUTS + NOT_BUILT_YET)
def test_rows_of_a_stage_count_what_its_ranks_hold(model, layout):
    planned = plan(job_of(model, **layout))
    pp = planned.mesh.pp
    for stage in range(planned.stages.num_stages):
        rank = stage % pp * (8 // pp)
        held = Counter(param.param for param in rank_params(planned, rank) if param.chunk == stage // pp)
        rows = Counter()
        for row, copies in stage_rows(planned.shards, planned.stages, stage):
            rows[row.param] += copies * max(1, row.param.experts // planned.mesh.ep)
        assert held == rows


def megatron_params(cases):
    """Name and shape of every parameter that Megatron-core builds on some ranks, through a fake process group."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer import TransformerConfig
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from ridgeline.kernels.device import open_device

    distributed.destroy_process_group()
    found = []
    for case in cases:
        for rank in case["ranks"]:
            distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=case["world_size"])
            with open_device("cpu").bridge():
                parallel_state.initialize_model_parallel(**case["groups"], create_gloo_process_groups=False)
                config = TransformerConfig(
                    **case["config"],
                    activation_func=torch.nn.functional.silu,
                    pipeline_dtype=torch.float32,
                    use_cpu_initialization=True,
                    perform_initialization=False,
                )
                held = []
                for chunk in range(case["vpp"]):
                    vp_stage = chunk if case["vpp"] > 1 else None
                    spec = get_gpt_decoder_block_spec(
                        config, use_transformer_engine=False, normalization="LayerNorm", vp_stage=vp_stage
                    )
                    with torch.device("meta"):
                        model = GPTModel(
                            config,
                            spec,
                            vocab_size=case["vocab_size"],
                            max_sequence_length=16,
                            position_embedding_type="rope",
                            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                            share_embeddings_and_output_weights=case["tied"],
                            vp_stage=vp_stage,
                        )
                    held += [(chunk, name, tuple(param.shape)) for name, param in model.named_parameters()]
                parallel_state.destroy_model_parallel()
            distributed.destroy_process_group()
            found.append(held)
    return found


def megatron_case(planned, ranks):
    """The same job in Megatron-core's words, for a model whose attention is the same everywhere."""
    from ridgeline.core.model import Moe
    from ridgeline.parallel.stages import megatron_layout

    model, layout = planned.job.model, planned.job.layout
    attention = model.blocks[0].block.mixer
    layers = model.layers()
    sparse = [int(isinstance(block.feed_forward, Moe)) for block in layers]
    moe = next((block.feed_forward for block in layers if isinstance(block.feed_forward, Moe)), None)
    mlp = next((block.feed_forward for block in layers if not isinstance(block.feed_forward, Moe)), None)
    experts = (
        {
            "num_moe_experts": moe.experts,
            "moe_router_topk": moe.topk,
            "moe_ffn_hidden_size": moe.ffn_hidden,
            "moe_layer_freq": sparse,
        }
        if moe
        else {}
    )
    return {
        "world_size": planned.mesh.world_size,
        "ranks": ranks,
        "vpp": layout.vpp,
        "vocab_size": padded_vocab(model.vocab_size, layout),
        "tied": model.tied_embeddings,
        "groups": {
            "tensor_model_parallel_size": layout.tp,
            "pipeline_model_parallel_size": layout.pp,
            "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
            "expert_model_parallel_size": layout.ep,
            "expert_tensor_parallel_size": layout.etp,
        },
        "config": {
            "num_layers": model.num_layers,
            "hidden_size": model.hidden,
            "ffn_hidden_size": mlp.ffn_hidden if mlp else moe.ffn_hidden,
            "num_attention_heads": attention.heads,
            "num_query_groups": attention.kv_heads,
            "kv_channels": attention.head_dim,
            "add_qkv_bias": attention.qkv_bias,
            "qk_layernorm": attention.qk_norm,
            "add_bias_linear": False,
            "gated_linear_unit": True,
            "tensor_model_parallel_size": layout.tp,
            "pipeline_model_parallel_size": layout.pp,
            "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
            "pipeline_model_parallel_layout": megatron_layout(planned.stages) if layout.pp > 1 else None,
            "expert_model_parallel_size": layout.ep,
            "expert_tensor_parallel_size": layout.etp,
            "sequence_parallel": False,
            **experts,
        },
    }


def test_ranks_hold_what_megatron_builds_on_them(ranks):
    pytest.importorskip("megatron.core")
    no_out_bias = dense_model(layers=6, attention={"qkv_bias": True, "qk_norm": True}, vocab_size=131, kv_heads=2)
    layouts = [(no_out_bias if model is WITH_EVERYTHING else model, layout) for model, layout in LAYOUTS]
    layouts += [
        (
            moe_model(layers=8, experts=64),
            {"world_size": 128, "layout__ep": 32, "layout__pp": 4, "layout__vpp": 2, "batch__gbs": 128},
        )
    ]
    plans = [plan(job_of(model, **layout)) for model, layout in layouts]
    chosen = [sorted({0, 3, planned.mesh.world_size // 2, planned.mesh.world_size - 1}) for planned in plans]
    cases = [megatron_case(planned, picked) for planned, picked in zip(plans, chosen, strict=True)]
    (built,) = ranks.run(megatron_params, 1, cases)
    ours = [
        [(param.chunk, param.name, param.local_shape) for param in rank_params(planned, rank)]
        for planned, picked in zip(plans, chosen, strict=True)
        for rank in picked
    ]
    for mine, theirs in zip(ours, built, strict=True):
        # their stock LayerNorm has biases, which an RMSNorm has not
        assert sorted(mine) == sorted(row for row in theirs if not row[1].endswith("layernorm.bias"))
