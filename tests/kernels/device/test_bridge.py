"""What the bridge changes, that it takes it back, and that Megatron-core runs inside it."""

import ast
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ridgeline.kernels.device import open_device
from ridgeline.kernels.device.bridge import REDIRECTED, assigned, redirects
from ridgeline.kernels.device.cpu import REDIRECTION
from tests.kernels.device.steps import load, save, train, train_and_log, train_twice
from tests.pool import Pool

MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48, "moe_aux_loss_coeff": 0.01}
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tp2": (2, {"tp": 2}, {}),
    "pp2": (2, {"pp": 2}, {}),
    "dp2": (2, {}, {}),
    "dp2, distributed optimizer": (2, {"distributed_optimizer": True}, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}, {}),
    "ep2 alltoall": (2, {"ep": 2, "moe_token_dispatcher_type": "alltoall"}, MOE),
    "ep2 allgather": (2, {"ep": 2, "moe_token_dispatcher_type": "allgather"}, MOE),
    "full recompute": (
        1,
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2},
        {},
    ),
    "selective recompute": (1, {"recompute_granularity": "selective"}, {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_megatron_trains_in_every_layout(ranks: Pool, name: str) -> None:
    """A layout's losses and gradient norms equal one rank's."""
    world_size, layout, model = LAYOUTS[name]
    if model:
        model = {**model, "moe_aux_loss_coeff": 0.0}  # it is a mean over each rank's own tokens
    (expected,) = ranks.run(train, 1, 3, model)
    results = ranks.run(train, world_size, 3, {**layout, **model})
    for ranks_of_step, (loss, norm) in zip(zip(*results, strict=True), expected, strict=True):
        for rank_loss, rank_norm in ranks_of_step:
            assert math.isnan(rank_loss) or rank_loss == pytest.approx(loss, rel=1e-5)
            assert rank_norm == pytest.approx(norm, rel=1e-5)
    assert expected[-1][0] < expected[0][0]


@pytest.mark.parametrize("options", [{"bf16": True}, {"bf16": True, "distributed_optimizer": True}, MOE])
def test_megatron_trains_in_bf16_and_with_auxiliary_loss(ranks: Pool, options: dict[str, Any]) -> None:
    """The mixed-precision optimizer, its distributed form and the router's loss run on a CPU, and the loss falls."""
    (steps,) = ranks.run(train, 1, 3, options)
    assert steps[-1][0] < steps[0][0]


def test_the_bridge_may_be_left_and_entered_again(ranks: Pool) -> None:
    """Training in one context equals training in a nested one per step, bit for bit."""
    assert ranks.run(train_twice, 1, 3, {}) == [True]


def test_recomputation_draws_the_same_dropout(ranks: Pool) -> None:
    """With dropout, recomputed layers give the gradients of layers that were kept, and no random state is warned of."""
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    ((kept, logged),) = ranks.run(train_and_log, 1, 2, {"dropout": 0.1})
    ((recomputed, logged_too),) = ranks.run(train_and_log, 1, 2, {"dropout": 0.1, **recompute})
    (without,) = ranks.run(train, 1, 2, {})
    assert recomputed == kept != without
    assert logged == logged_too == []


@pytest.mark.parametrize("asynchronously", [False, True], ids=["blocking", "asynchronous"])
def test_checkpoints_are_saved_and_loaded(ranks: Pool, tmp_path: Path, asynchronously: bool) -> None:
    """Megatron-core's distributed checkpoints work inside, also from a forked writer, and load into another layout."""
    saved = ranks.run(save, 2, str(tmp_path), {"tp": 2}, asynchronously)
    loaded = ranks.run(load, 2, str(tmp_path), {"pp": 2})
    for (loss, norm), (loss_too, norm_too) in zip(saved[1], loaded[1], strict=True):
        assert loss_too == pytest.approx(loss, rel=1e-5)
        assert norm_too == pytest.approx(norm, rel=1e-5)


def targets() -> dict[str, object]:
    """What stands at every target of a redirection now."""
    found: dict[str, object] = {}
    for target, _ in redirects(REDIRECTION):
        module, _, path = target.partition(":")
        owner: Any = sys.modules[module]
        *owners, name = path.split(".")
        for word in owners:
            owner = getattr(owner, word)
        found[target] = vars(owner).get(name, "absent")
    return found


@pytest.fixture(scope="module")
def before() -> dict[str, object]:
    with open_device("cpu").bridge():
        pass
    return targets()


def test_everything_is_taken_back(before: dict[str, object]) -> None:
    """After leaving, by the end or by an exception, nested or not, every target holds what it held before."""
    device = open_device("cpu")
    with device.bridge():
        inside = targets()
        with device.bridge():
            pass
        assert targets() == inside
    assert targets() == before
    assert all(inside[target] is not before[target] for target in before)
    with pytest.raises(KeyError), device.bridge(), device.bridge():
        raise KeyError
    assert targets() == before


def test_a_failed_entry_is_taken_back() -> None:
    """When one target does not exist, those assigned before it are restored."""
    pi = math.pi
    with pytest.raises(AttributeError), assigned([("math:pi", 3), ("math:no.such", 1)]):
        pass
    assert math.pi == pi


def test_ordinary_torch_is_unaffected_inside() -> None:
    """Inside the bridge torch itself is the same: its functions, its answers, its errors."""
    functions = {name: getattr(torch, name) for name in dir(torch) if callable(getattr(torch, name, None))}
    namespace = dict(vars(torch.cuda))
    with open_device("cpu").bridge():
        assert {name: getattr(torch, name) for name in functions} == functions
        assert vars(torch.cuda) == namespace
        assert torch.zeros(1).type() == "torch.FloatTensor"
        assert torch.zeros(1).type(torch.float64).dtype == torch.float64
        assert not torch.cuda.is_available()
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|cuda"):
            torch.zeros(1, device="cuda")


def test_transformers_is_unaffected_after() -> None:
    """A transformers model built and run after leaving gives what it gave before entering, and inside too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    tokens = torch.arange(24).view(2, 12)

    def logits() -> torch.Tensor:
        torch.manual_seed(1)
        model = transformers.LlamaForCausalLM(config)
        return model(tokens).logits.detach()

    before = logits()
    with open_device("cpu").bridge():
        inside = logits()
    assert before.isfinite().all()
    assert torch.equal(inside, before)
    assert torch.equal(logits(), before)


UNUSED = (
    "distributed.fsdp.",  # FSDP is torch's and Megatron's own; we use neither
    "distributed.torch_fully_sharded_data_parallel",
    "extensions.transformer_engine",
    "fp8_utils",
    "fusions.",  # CUDA and Triton kernels; ours come from the kernel table
    "inference.",
    "nccl_allocator",
    "optimizer.cpu_offloading.",
    "pipeline_parallel.combined_1f1b",  # overlaps experts' all-to-all by CUDA streams
    "pipeline_parallel.fine_grained_activation_offload",
    "pipeline_parallel.hybrid_cp_schedule",
    "tensor_parallel.inference_layers",
    "transformer.cuda_graphs",
    "transformer.experimental_attention_variant.dsa",  # judges our indexer's loss, outside of the bridge
    "transformer.fsdp_dtensor_checkpoint",
)


def names_a_device(source: str) -> bool:
    """Whether code (not comments or docstrings) spells ``torch.cuda``, ``.cuda()`` or ``"cuda"``, or pins memory."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and ast.unparse(node.value) != "torch.backends":
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("cuda", "cuda:0"):
            return True
        if isinstance(node, ast.keyword) and node.arg == "pin_memory":
            return True
    return False


def test_no_device_call_is_forgotten(before: dict[str, object]) -> None:
    """Every loaded module of Megatron-core that names CUDA in its code is redirected or one we do not use."""
    prefix = "megatron.core."
    missing = []
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        short = name.removeprefix(prefix)
        if not name.startswith(prefix) or not path or not path.endswith(".py") or short in REDIRECTED:
            continue
        if not short.startswith(UNUSED) and names_a_device(Path(path).read_text(encoding="utf-8")):
            missing.append(short)
    assert missing == []
