"""A feed-forward's parameters, of experts and dense, from the names of transformers."""

from typing import Any

import torch

from tests.parity.ours.names import below


def _stacked_experts(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-OSS's experts: matrices transposed, gate and up in turn."""
    ours = {f"mlp.router.{kind}": theirs[f"mlp.router.{kind}"] for kind in ("weight", "bias")}
    for published, name in (("gate_up_proj", "linear_fc1"), ("down_proj", "linear_fc2")):
        for suffix, kind in (("", "weight"), ("_bias", "bias")):
            for expert, tensor in enumerate(theirs[f"mlp.experts.{published}{suffix}"]):
                upright = torch.cat((tensor[..., ::2], tensor[..., 1::2]), -1) if published[0] == "g" else tensor
                ours[f"mlp.experts.local_experts.{expert}.{name}.{kind}"] = upright.T if kind == "weight" else upright
    return ours


def feed_forward(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {}
    for kind in ("weight", "bias"):
        if f"mlp.gate_proj.{kind}" in theirs:
            ours[f"mlp.linear_fc1.{kind}"] = torch.cat([theirs[f"mlp.{x}_proj.{kind}"] for x in ("gate", "up")])
            ours[f"mlp.linear_fc2.{kind}"] = theirs[f"mlp.down_proj.{kind}"]
    if "mlp.gate_up_proj.weight" in theirs:
        ours["mlp.linear_fc1.weight"] = theirs["mlp.gate_up_proj.weight"]
        ours["mlp.linear_fc2.weight"] = theirs["mlp.down_proj.weight"]
    if "mlp.experts.gate_up_proj_bias" in theirs:
        ours |= _stacked_experts(theirs)
    names = ("mlp.gate.weight", "mlp.router.weight", "mlp.gate.wg.weight")
    router = next((theirs[name] for name in names if name in theirs), None)
    if router is not None and "mlp.experts.gate_up_proj_bias" not in theirs:
        ours["mlp.router.weight"] = router
        for expert, (gate_up, down) in enumerate(
            zip(theirs["mlp.experts.gate_up_proj"], theirs["mlp.experts.down_proj"], strict=True)
        ):
            ours[f"mlp.experts.local_experts.{expert}.linear_fc1.weight"] = gate_up
            ours[f"mlp.experts.local_experts.{expert}.linear_fc2.weight"] = down
    if "shortcut.router.classifier.weight" in theirs:
        ours["shortcut.router.weight"] = theirs["shortcut.router.classifier.weight"]
        gates, downs = theirs["shortcut.experts.gate_up_proj"], theirs["shortcut.experts.down_proj"]
        for expert, down in enumerate(downs):  # those behind give the token back
            ours[f"shortcut.experts.local_experts.{expert}.linear_fc1.weight"] = gates[expert]
            ours[f"shortcut.experts.local_experts.{expert}.linear_fc2.weight"] = down
    names = ("shared_experts", "shared_expert", "shared_mlp")
    shared = next((found for name in names if (found := below(theirs, f"mlp.{name}."))), None)
    if shared:
        fused = torch.cat([shared["gate_proj.weight"], shared["up_proj.weight"]])
        ours["mlp.shared_experts.linear_fc1.weight"] = fused
        ours["mlp.shared_experts.linear_fc2.weight"] = shared["down_proj.weight"]
    if "mlp.shared_expert_gate.weight" in theirs:
        ours["mlp.shared_experts.gate_weight"] = theirs["mlp.shared_expert_gate.weight"]
    return ours


def halves(tensors: dict[str, Any], config: Any) -> dict[str, Any]:
    """LongCat-Flash's pairs of layers as layers of others: what is a list of two, apart; the experts with the first."""
    halves = {}
    for layer in range(2 * config.num_layers):
        pair, half = divmod(layer, 2)
        for name, tensor in below(tensors, f"model.layers.{pair}.").items():
            part, _, rest = name.partition(".")
            if part == "mlp":
                if half == 0:
                    halves[f"model.layers.{layer}.shortcut.{rest}"] = tensor
            elif rest.startswith(f"{half}."):
                renamed = part.replace("mlps", "mlp")
                halves[f"model.layers.{layer}.{renamed}.{rest.removeprefix(f'{half}.')}"] = tensor
    return halves
