"""Where every parameter of a model lies in its published Hugging Face files."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType

import attrs

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.model import ModelSpec
from ridgeline.core.params import Param, fqn_of, model_params, mtp_params
from ridgeline.models.families.table import FAMILIES
from ridgeline.models.hf_config import hf_config_of
from ridgeline.models.hf_source import Shape, Source, bind, published_shapes


@cache
def hf_sources(spec: ModelSpec) -> Mapping[str, Source]:
    """For each of our parameters, by full name and in model order, the published tensors it is made of.

    Raises:
        SpecError: The spec's family cannot express it.
    """
    return MappingProxyType({fqn: source for fqn, source, _ in _entries(spec)})


@cache
def hf_shapes(spec: ModelSpec) -> Mapping[str, Shape]:
    """Every tensor of the published files and its shape.

    Raises:
        SpecError: The spec's family cannot express it.
    """
    return MappingProxyType(
        {name: form for _, source, shape in _entries(spec) for name, form in published_shapes(source, shape).items()}
    )


def hf_derived(spec: ModelSpec) -> frozenset[str]:
    """Tensors that files may hold and that say nothing: a tied head again, old releases' frequencies and masks.

    Of multi-token prediction too: it shares embedding and head, and files of DeepSeek and Step hold them again with its
    layers.
    """
    layers = range(spec.num_layers + spec.mtp)
    frequencies = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in layers)
    again = (
        f"model.layers.{layer}.{name}.weight"
        for layer in layers[spec.num_layers :]
        for name in ("embed_tokens", "shared_head.head", "transformer.shared_head.output")
    )
    masks = (f"transformer.h.{layer}.attn.{name}" for layer in layers for name in ("bias", "masked_bias"))
    of_all = "transformer.rotary_pos_emb.inv_freq"
    unused = (  # transformers allots gate and up to experts that give the token back
        f"model.layers.{layer // 2}.mlp.experts.{moe.experts + zero}.{name}_proj.weight"
        for layer, block in enumerate(spec.layers())
        if (moe := block.shortcut) is not None
        for zero in range(moe.zero_experts)
        for name in ("gate", "up")
    )
    head = ("lm_head.weight",) if spec.tied_embeddings else ()
    return frozenset((*frequencies, *masks, *again, *unused, of_all, *head, *_beyond(spec)))


def hf_mtp_name(spec: ModelSpec) -> str:
    """A tensor that files have where they hold multi-token prediction."""
    table = FAMILIES[spec.family].mtp_weights
    if table is None:
        return f"model.layers.{spec.num_layers}.eh_proj.weight"
    return table["mtp.eh_proj.weight"].names[0].format(layer=0)


def _beyond(spec: ModelSpec) -> Iterator[str]:
    """Multi-token prediction under names of its own, where the model has none; and its embedding, held again."""
    if FAMILIES[spec.family].mtp_weights is None:
        return
    yield "model.mtp.embed_tokens.weight"
    if not spec.mtp:
        ahead = attrs.evolve(spec, mtp=1)
        for _, source, shape in _bound(ahead, [(None, param) for param in mtp_params(ahead)]):
            yield from published_shapes(source, shape)


def hf_full_names(spec: ModelSpec, names: Iterable[str]) -> dict[str, str]:
    """The full name of each tensor in files: those of a model without its head leave out what all others begin with."""
    base, names = FAMILIES[spec.family].base, tuple(names)
    bare = not any(name.startswith(base) for name in names)
    return {name: base + name if bare else name for name in names}


def _entries(spec: ModelSpec) -> list[tuple[str, Source, Shape]]:
    hf_config_of(spec)  # refuses what the family's files have no names for
    if FAMILIES[spec.family].weights is None:
        rule = "can be planned, but how its weights are published is not modelled yet"
        raise SpecError(Problem("family", spec.family, rule))
    return list(_bound(spec, model_params(spec)))


def _bound(spec: ModelSpec, params: Iterable[tuple[int | None, Param]]) -> Iterator[tuple[str, Source, Shape]]:
    family, blocks = FAMILIES[spec.family], spec.layers()
    assert family.weights is not None
    for layer, param in params:
        name, place = (param.name, layer) if layer is not None else _published_place(param.name, spec.num_layers)
        block = None if place is None else blocks[place] if place < spec.num_layers else spec.block_ahead
        weights = family.weights
        if place is not None and place >= spec.num_layers and family.mtp_weights is not None:
            weights, place = family.mtp_weights, place - spec.num_layers
        for expert in range(param.experts) if param.experts else (None,):
            source = bind(weights[name], layer=place, expert=expert, block=block)
            yield fqn_of(layer, param, expert=expert), source, param.shape


def _published_place(name: str, num_layers: int) -> tuple[str, int | None]:
    """A parameter outside of the layers as the families' tables name it: multi-token prediction is a further layer.

    Example:
        >>> _published_place("mtp.layers.0.transformer_layer.mlp.router.weight", 61)
        ('mlp.router.weight', 61)
    """
    if not name.startswith("mtp.layers."):
        return name, None
    index, _, part = name.removeprefix("mtp.layers.").partition(".")
    inner = part.removeprefix("transformer_layer.")
    return (inner if inner != part else f"mtp.{part}"), num_layers + int(index)
