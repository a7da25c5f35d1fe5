"""The per-rank layout against MindSpeed-LLM's orders, written out in numpy."""

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.checkpoint.classic import ClassicForm, classic_holders, lay_out, layer_numbers
from ridgeline.checkpoint.pieces import Holder, filling_fault
from ridgeline.checkpoint.published import published_buffers
from ridgeline.checkpoint.reshard import reshard
from ridgeline.core.errors import PlanError
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import model_from_hf
from ridgeline.parallel.stages import plan_stages
from tests.checkpoint.test_reshard import Arrays, executed
from tests.parallel.examples import dense_model, moe_model

DENSE = dense_model(
    layers=4,
    hidden=20,
    heads=8,
    kv_heads=4,
    head_dim=6,
    vocab_size=38,
    ffn=28,
    attention={"qkv_bias": True},
    family="qwen2",
)
MOE = moe_model(
    layers=3,
    hidden=20,
    heads=8,
    kv_heads=4,
    head_dim=6,
    vocab_size=38,
    ffn=12,
    experts=8,
    family="qwen3_moe",
    attention={"qk_norm": True},
)


def numbers(model: ModelSpec) -> dict[str, np.ndarray]:
    """Published tensors, no two of whose elements are equal."""
    arrays, begin = {}, 0
    for buffer in published_buffers(model):
        arrays[buffer.name] = np.arange(begin, begin + buffer.elements).reshape(buffer.shape)
        begin += buffer.elements
    return arrays


def converted(model: ModelSpec, layout: Layout, form: ClassicForm) -> dict[str, dict[str, np.ndarray]]:
    """Every file of the classic layout, made of ``numbers``."""
    published = Holder("hf", published_buffers(model))
    source: Arrays = {("hf", name): array.reshape(-1) for name, array in numbers(model).items()}
    holders = classic_holders(lay_out(model, layout), form)
    assert not [fault for holder in holders for buffer in holder.buffers if (fault := filling_fault(buffer))]
    flat = executed(reshard((published,), holders), source)
    return {
        holder.name.split("/")[0]: {
            buffer.name: flat[holder.name, buffer.name].reshape(buffer.shape) for buffer in holder.buffers
        }
        for holder in holders
    }


def test_a_dense_model_over_tp_and_pp() -> None:
    """QKV by key-value head, gate and up of each rank together, columns of the others; rows of the vocabulary."""
    hf, out = numbers(DENSE), converted(DENSE, Layout(tp=2, pp=2), ClassicForm())
    assert sorted(out) == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    layer = "model.layers.3."
    q, k, v = (hf[f"{layer}self_attn.{x}_proj.weight"] for x in "qkv")
    grouped = np.concatenate([q.reshape(4, 12, 20), k.reshape(4, 6, 20), v.reshape(4, 6, 20)], axis=1).reshape(-1, 20)
    biases = [hf[f"{layer}self_attn.{x}_proj.bias"] for x in "qkv"]
    bias = np.concatenate([biases[0].reshape(4, 12), biases[1].reshape(4, 6), biases[2].reshape(4, 6)], axis=1).ravel()
    gate, up = (np.split(hf[f"{layer}mlp.{x}_proj.weight"], 2) for x in ("gate", "up"))
    for tp_rank in range(2):
        file = out[f"mp_rank_{tp_rank:02d}_001"]
        ours = "model/decoder.layers.1."
        for name, expected in {
            ours + "self_attention.linear_qkv.weight": np.split(grouped, 2)[tp_rank],
            ours + "self_attention.linear_qkv.bias": np.split(bias, 2)[tp_rank],
            ours + "self_attention.linear_proj.weight": np.split(hf[f"{layer}self_attn.o_proj.weight"], 2, 1)[tp_rank],
            ours + "mlp.linear_fc1.weight": np.concatenate([gate[tp_rank], up[tp_rank]]),
            ours + "mlp.linear_fc2.weight": np.split(hf[f"{layer}mlp.down_proj.weight"], 2, 1)[tp_rank],
            ours + "input_layernorm.weight": hf[f"{layer}input_layernorm.weight"],
            ours + "pre_mlp_layernorm.weight": hf[f"{layer}post_attention_layernorm.weight"],
            "model/decoder.final_layernorm.weight": hf["model.norm.weight"],
            "model/output_layer.weight": np.split(hf["lm_head.weight"], 2)[tp_rank],
        }.items():
            assert np.array_equal(file[name], expected), name
        assert len(file) == 2 * 7 + 2
        embedding = out[f"mp_rank_{tp_rank:02d}_000"]["model/embedding.word_embeddings.weight"]
        assert np.array_equal(embedding, np.split(hf["model.embed_tokens.weight"], 2)[tp_rank])


def experts_of(hf: dict[str, np.ndarray], layer: int, expert: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = (f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight" for part in ("gate", "up", "down"))
    gate, up, down = (hf[name] for name in names)
    return gate, up, down


@pytest.mark.parametrize("experts", ["sequential", "grouped"])
def test_experts_over_ep_and_etp(experts: str) -> None:
    """Consecutive experts a rank; packed, each lies transposed, gate then up of the rank's part."""
    hf = numbers(MOE)
    out = converted(MOE, Layout(tp=2, ep=2, etp=2), ClassicForm(experts=experts))
    assert sorted(out) == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    for tp_rank in range(2):
        for ep_rank in range(2):
            file = out[f"mp_rank_{tp_rank:02d}_{ep_rank:03d}"]
            fc1, fc2 = [], []
            for expert in range(4 * ep_rank, 4 * ep_rank + 4):
                gate, up, down = experts_of(hf, 1, expert)
                fc1.append(np.concatenate([np.split(gate, 2)[tp_rank], np.split(up, 2)[tp_rank]]))
                fc2.append(np.split(down, 2, axis=1)[tp_rank])
            name = "model/decoder.layers.1.mlp.experts."
            if experts == "grouped":
                packed = np.concatenate([w.T for w in fc1]).reshape(20, -1)
                assert np.array_equal(file[name + "weight1"], packed)
                assert np.array_equal(file[name + "weight2"], np.concatenate([w.T for w in fc2]).reshape(-1, 20))
            else:
                for number in range(4):
                    assert np.array_equal(file[f"{name}local_experts.{number}.linear_fc1.weight"], fc1[number])
                    assert np.array_equal(file[f"{name}local_experts.{number}.linear_fc2.weight"], fc2[number])
            assert np.array_equal(
                file["model/decoder.layers.1.mlp.router.weight"], hf["model.layers.1.mlp.gate.weight"]
            )


def test_which_files_there_are_without_etp() -> None:
    """With etp=1 only the pairs of tp and ep ranks exist that a real rank has."""
    wide = converted(MOE, Layout(tp=4, ep=2), ClassicForm())
    assert sorted(wide) == ["mp_rank_00_000", "mp_rank_01_001", "mp_rank_02_000", "mp_rank_03_001"]
    deep = converted(MOE, Layout(tp=2, ep=4), ClassicForm())
    assert sorted(deep) == ["mp_rank_00_000", "mp_rank_00_002", "mp_rank_01_001", "mp_rank_01_003"]
    with pytest.raises(PlanError, match=r"layout\.etp=4: cannot be told apart in mp_rank_00/"):
        classic_holders(lay_out(MOE, Layout(tp=2, etp=4)), ClassicForm())


def test_experts_spread_over_tp() -> None:
    """Under tp_extend_ep the experts of (tp, ep) are those of ep_rank * tp + tp_rank."""
    hf = numbers(MOE)
    out = converted(MOE, Layout(tp=2, ep=4), ClassicForm(experts="grouped", tp_extend_ep=True))
    assert sorted(out) == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    gate, up, _ = zip(*(experts_of(hf, 0, expert) for expert in (6, 7)), strict=True)
    packed = np.concatenate([np.concatenate([g, u]).T for g, u in zip(gate, up, strict=True)]).reshape(20, -1)
    assert np.array_equal(out["mp_rank_01_001"]["model/decoder.layers.0.mlp.experts.weight1"], packed)


def test_names_of_transformer_engine() -> None:
    """A norm is kept by the layer behind it; grouped experts are numbered weights."""
    dense = converted(DENSE, Layout(), ClassicForm(impl="te"))["mp_rank_00"]
    assert "model/decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in dense
    assert "model/decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in dense
    assert not [name for name in dense if "input_layernorm" in name or "pre_mlp" in name]
    moe = converted(MOE, Layout(), ClassicForm(impl="te", experts="grouped"))["mp_rank_00"]
    assert "model/decoder.layers.0.pre_mlp_layernorm.weight" in moe
    assert moe["model/decoder.layers.0.mlp.experts.linear_fc1.weight7"].shape == (24, 20)


def test_noop_layers_take_numbers() -> None:
    """A noop layer has no tensors, and the layers behind it are numbered as if it had."""
    stages = plan_stages(6, pp=2, vpp=2, noop_layers=(1, 7))
    assert layer_numbers(stages, (1, 7)) == {(0, 0): (0,), (0, 1): (0, 1), (1, 0): (0, 1), (1, 1): (0,)}
    out = converted(MOE, Layout(pp=2, noop_layers=(0,)), ClassicForm())
    assert {name.split(".")[2] for name in out["mp_rank_00_000"] if ".layers." in name} == {"1"}
    assert {name.split(".")[2] for name in out["mp_rank_00_001"] if ".layers." in name} == {"0", "1"}


def test_chunks_and_padding() -> None:
    """Each chunk is a model of its own; rows that round up the vocabulary repeat its last one."""
    out = converted(DENSE, Layout(pp=2, vpp=2, vocab_multiple=16), ClassicForm())
    file = out["mp_rank_00_000"]
    assert {name.split("/")[0] for name in file} == {"model0", "model1"}
    embedding = file["model0/embedding.word_embeddings.weight"]
    assert embedding.shape == (48, 20)
    assert (embedding[38:] == numbers(DENSE)["model.embed_tokens.weight"][37]).all()


LATENT = {
    "model_type": "deepseek_v3",
    "vocab_size": 38,
    "hidden_size": 20,
    "intermediate_size": 28,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 14,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 2,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "routed_scaling_factor": 2.5,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "num_nextn_predict_layers": 1,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize("dialect", ["mindspeed", "megatron"])
def test_latent_attention_shared_experts_and_mtp(dialect: str) -> None:
    """MindSpeed-LLM's one linear_qkv and whole shared experts, or Megatron-core's parts; and a layer of MTP."""
    model = model_from_hf(LATENT)
    hf = numbers(model)
    file = converted(model, Layout(tp=2, ep=2), ClassicForm(dialect=dialect))["mp_rank_01_001"]
    ours, theirs = "model/decoder.layers.2.", "model.layers.2."
    down = [hf[f"{theirs}self_attn.{name}.weight"] for name in ("q_a_proj", "kv_a_proj_with_mqa")]
    gate, up = (hf[f"{theirs}mlp.shared_experts.{name}_proj.weight"] for name in ("gate", "up"))
    if dialect == "mindspeed":
        assert np.array_equal(file[ours + "self_attention.linear_qkv.weight"], np.concatenate(down))
        assert np.array_equal(file[ours + "mlp.shared_experts.linear_fc1.weight"], np.concatenate([gate, up]))
    else:
        assert np.array_equal(file[ours + "self_attention.linear_q_down_proj.weight"], down[0])
        assert np.array_equal(file[ours + "self_attention.linear_kv_down_proj.weight"], down[1])
        half = np.concatenate([np.split(gate, 2)[1], np.split(up, 2)[1]])
        assert np.array_equal(file[ours + "mlp.shared_experts.linear_fc1.weight"], half)
    up_proj = np.split(hf[f"{theirs}self_attn.kv_b_proj.weight"], 2)[1]
    assert np.array_equal(file[ours + "self_attention.linear_kv_up_proj.weight"], up_proj)
    assert np.array_equal(file[ours + "mlp.router.expert_bias"], hf[f"{theirs}mlp.gate.e_score_correction_bias"])
    mtp = "model/mtp.layers.0."
    assert np.array_equal(file[mtp + "eh_proj.weight"], np.split(hf["model.layers.3.eh_proj.weight"], 2)[1])
    assert np.array_equal(file[mtp + "enorm.weight"], hf["model.layers.3.enorm.weight"])
    assert any(name.startswith(mtp + "transformer_layer.mlp.experts.local_experts.3.") for name in file)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    """From published tensors through any classic layout, and through another one, and back: nothing changed."""
    model = data.draw(st.sampled_from([DENSE, MOE, model_from_hf(LATENT)]))
    moe = model is not DENSE

    def some_holders() -> tuple[Holder, ...]:
        tp, pp = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([1, 2]))
        noops = data.draw(st.sampled_from([(), (0,), (3,)])) if moe and pp == 2 else ()
        fields = (
            {"ep": data.draw(st.sampled_from([1, 2, 4])), "etp": data.draw(st.sampled_from([1, tp]))} if moe else {}
        )
        if moe and pp == 2 and not noops:
            noops = (1,)
        form = ClassicForm(
            experts=data.draw(st.sampled_from(["sequential", "grouped"])),
            impl=data.draw(st.sampled_from(["local", "te"])),
            dialect=data.draw(st.sampled_from(["mindspeed", "megatron"])),
        )
        return classic_holders(lay_out(model, Layout(tp=tp, pp=pp, noop_layers=noops, **fields)), form)

    published, one, other = (Holder("hf", published_buffers(model)),), some_holders(), some_holders()
    before: Arrays = {("hf", name): array.reshape(-1) for name, array in numbers(model).items()}
    there = executed(reshard(published, one), before)
    across = executed(reshard(one, other), there)
    back = executed(reshard(other, published), across)
    assert before.keys() == back.keys()
    assert all(np.array_equal(before[name], back[name]) for name in before)


def test_a_folded_pipeline() -> None:
    """DualPipeV's two chunks of a rank lie opposite each other in the model; embedding and head are rank 0's."""
    (run,) = DENSE.blocks
    model = attrs.evolve(DENSE, blocks=(attrs.evolve(run, count=8),))
    hf, out = numbers(model), converted(model, Layout(pp=2, schedule="dualpipe_v"), ClassicForm())
    expected = {(0, 0): (0, 1), (0, 1): (6, 7), (1, 0): (2, 3), (1, 1): (4, 5)}
    for (pp_rank, chunk), layers in expected.items():
        file = out[f"mp_rank_00_{pp_rank:03d}"]
        for number, layer in enumerate(layers):
            ours = file[f"model{chunk}/decoder.layers.{number}.mlp.linear_fc2.weight"]
            assert np.array_equal(ours, hf[f"model.layers.{layer}.mlp.down_proj.weight"])
    outside = {name for name in out["mp_rank_00_000"] if ".layers." not in name}
    assert outside == {
        "model0/embedding.word_embeddings.weight",
        "model1/decoder.final_layernorm.weight",
        "model1/output_layer.weight",
    }
    assert not [name for name in out["mp_rank_00_001"] if ".layers." not in name]
