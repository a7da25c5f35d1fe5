"""Weight gradients that wait are those that do not, bit for bit, whatever module they are of."""

import numpy as np
import pytest

from tests.parity.on_ranks import microbatches, pieces
from tests.parity.small import (
    BIASED,
    GATED,
    LATENT,
    MAMBA,
    MLP,
    MOE,
    SHARED,
    job_of,
    layers_of,
    model_of,
    one_part_layers,
)

MODELS = {
    "attention": model_of(MLP, SHARED),
    "biases": model_of(MLP, BIASED),
    "latent": layers_of((LATENT, MLP), (LATENT, MOE)),
    "mamba": one_part_layers(MAMBA, GATED),
}
AT_ONCE = ("norm", "bias", "embedding", "router", "gate_weight", "sinks", "indexer", "conv1d", "A_log", "dt_bias", ".D")
"""Parameters of no projection, or of one whose product is small."""


def gradients(job):
    """Of one microbatch: all when nothing waits, those there before what waits, all after it, and what waited."""
    import torch
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from ridgeline.kernels.device import open_device
    from ridgeline.models.program import lower
    from ridgeline.models.runtime.build import build
    from ridgeline.models.runtime.step import run_chunk
    from ridgeline.parallel.plan import plan
    from ridgeline.parallel.runtime.deferred import carry_out, collecting

    with build(lower(plan(job), 0), open_device("cpu")) as built:
        (chunk,), batch = built.chunks, microbatches(built, 0)[0]
        MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))  # as every step does
        names = {param: name for name, param in chunk.named_parameters()}

        def loss():
            chunk.zero_grad_buffer()
            return run_chunk(built, chunk, batch, labels=batch.labels).sum()

        def found():
            return {piece.fqn: piece.values for piece in pieces(built)}

        loss().backward()
        at_once = found()
        with collecting(chunk.deferred) as products:
            loss().backward()
        waited = {names[param] for product in products for param in product.params}
        zero = {name for param, name in names.items() if not param.main_grad.any()}  # pyright: ignore[reportAttributeAccessIssue]  Megatron's
        carry_out(chunk.deferred, products)
        return {"at once": at_once, "later": found(), "waited": waited, "zero": zero, "names": set(names.values())}


@pytest.mark.parametrize("model", MODELS)
def test_products_that_wait_give_the_same_gradients(ranks, model):
    """Each projection's weight has no gradient until its product is carried out, and then the very same."""
    (result,) = ranks.run(gradients, 1, job_of(MODELS[model], layout__schedule="zb_h1"))
    for name, gradient in result["at once"].items():
        np.testing.assert_array_equal(result["later"][name], gradient, err_msg=name)
    assert result["waited"] <= result["zero"]
    assert [name for name in result["names"] - result["waited"] if not any(word in name for word in AT_ONCE)] == []


def backward_of_experts(job):
    """Collectives and products of experts' weight gradients of one backward, in their order."""
    import torch
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
    from torch import distributed
    from torch.utils._python_dispatch import TorchDispatchMode

    from ridgeline.kernels.device import open_device
    from ridgeline.models.program import lower
    from ridgeline.models.runtime.build import build
    from ridgeline.models.runtime.step import run_chunk
    from ridgeline.parallel.plan import plan

    log: list[str] = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if "alltoall" in func._schema.name:
                log.append("exchange")
            elif func._schema.name == "aten::mm" and tuple(result.shape) in shapes:
                log.append("product")
            return result

    with build(lower(plan(job), distributed.get_rank()), open_device("cpu")) as built:
        (chunk,), batch = built.chunks, microbatches(built, 0)[0]
        MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
        shapes = {tuple(weight.shape) for name, weight in chunk.named_parameters() if "local_experts" in name}
        loss = run_chunk(built, chunk, batch, labels=batch.labels).sum()
        with Log():
            loss.backward()
    return log


def test_experts_products_run_while_gradients_of_tokens_travel(ranks):
    """All exchanges of a layer's backward have begun before the first product; without the overlap, but the first."""
    plain = job_of(model_of(MOE), world_size=2, layout__ep=2)
    late = job_of(model_of(MOE), world_size=2, layout__ep=2, comm__moe_overlap=("weight_gradients",))
    for log in ranks.run(backward_of_experts, 2, late):
        assert log == ["exchange"] * 3 + ["product"] * 6
    for log in ranks.run(backward_of_experts, 2, plain):
        assert log.index("product") == 1
        assert sorted(log) == ["exchange"] * 3 + ["product"] * 6
