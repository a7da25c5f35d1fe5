"""Conversions that tests share: a classic layout for each family, and what must be equal."""

from pathlib import Path

import torch

from ridgeline.checkpoint.boxes import whole
from ridgeline.checkpoint.classic import ClassicForm
from ridgeline.checkpoint.io.convert import Wanted, convert, plan_conversion
from ridgeline.checkpoint.io.open_source import hf_model, open_source
from ridgeline.checkpoint.io.sources import weights_in
from ridgeline.checkpoint.names import params_of
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec

CLASSIC = {
    "Llama": Wanted(format="classic", layout=Layout(tp=2, pp=3, vocab_multiple=8)),
    "Qwen2": Wanted(
        format="classic",
        layout=Layout(pp=2, schedule="dualpipe_v", noop_layers=(1,)),
        form=ClassicForm(impl="te"),
    ),
    "Bloom": Wanted(format="classic", layout=Layout(tp=2, pp=3)),
    "GPT2": Wanted(format="classic", layout=Layout(tp=2)),
    "Qwen3": Wanted(format="classic", layout=Layout(pp=2, vpp=2, noop_layers=(3,))),
    "GptOss": Wanted(format="classic", layout=Layout(tp=2, etp=2, ep=5)),
    "Phimoe": Wanted(format="classic", layout=Layout(tp=2, ep=5, pp=3, vocab_multiple=8)),
    "Mixtral": Wanted(format="classic", layout=Layout(tp=2, ep=5), form=ClassicForm(experts="grouped")),
    "DeepseekV3": Wanted(
        format="classic", layout=Layout(tp=2, ep=5, pp=2, noop_layers=(3,)), form=ClassicForm(experts="grouped")
    ),
    "DeepseekV32": Wanted(format="classic", layout=Layout(tp=2, ep=2, pp=3)),
    "Mamba2": Wanted(format="classic", layout=Layout(tp=2, pp=3)),
    "NemotronH": Wanted(format="classic", layout=Layout(ep=5, pp=3)),
    "Qwen3Moe": Wanted(
        format="classic", layout=Layout(tp=2, etp=2, ep=5), form=ClassicForm(impl="te", experts="grouped")
    ),
}


def model_of(folder: Path) -> ModelSpec:
    return hf_model(folder)


def made(source: Path, out: Path, wanted: Wanted, **options: object) -> Path:
    convert(plan_conversion(source, wanted, **options), out)
    return out


def same_weights(one: Path, other: Path, model: ModelSpec) -> bool:
    """Whether two folders hold the same, read parameter by parameter."""
    readers = [weights_in(open_source(folder, model=model)) for folder in (one, other)]
    for fqn, param in params_of(model).items():
        tensors = [torch.full(param.shape, float(-i - 1)) for i in range(2)]
        for read, tensor in zip(readers, tensors, strict=True):
            read(fqn, whole(param.shape), tensor)
        if not torch.equal(*tensors):
            return False
    return True
