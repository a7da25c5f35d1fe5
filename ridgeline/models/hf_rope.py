"""Rotary positions in a Hugging Face config: ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5)."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from ridgeline.core.errors import Problem, nearest
from ridgeline.core.fields import type_rule
from ridgeline.core.frozen import frozen
from ridgeline.core.model import DynamicRope, LinearRope, Llama3Rope, LongRope, Rope, RopeScaling, YarnRope
from ridgeline.models.family import Field, Values, read_fields, require

_ORIGINAL = "original_max_position_embeddings"
_FACTOR = Field("factor", float)
ROTARY_DIM_FIELDS = (
    Field("rotary_dim", int | None, None),
    Field("partial_rotary_factor", float | None, None, minimum=0),
    Field("rope_parameters", dict | None, None),
)
_SPEC_NAMES: Mapping[str, str] = MappingProxyType(
    {_ORIGINAL: "original_max_position", "short_factor": "short_factors", "long_factor": "long_factors"}
)
_OLD_NAMES: Mapping[str, str] = MappingProxyType({"su": "longrope"})  # of Phi-3's first files


@frozen
class _Scaling:
    spec: type[RopeScaling]
    fields: tuple[Field, ...]


_SCALINGS: Mapping[str, _Scaling] = MappingProxyType(
    {
        "linear": _Scaling(LinearRope, (_FACTOR,)),
        "dynamic": _Scaling(DynamicRope, (_FACTOR, Field(_ORIGINAL, int))),
        "llama3": _Scaling(
            Llama3Rope,
            (
                _FACTOR,
                Field("low_freq_factor", float, minimum=0),
                Field("high_freq_factor", float, minimum=0),
                Field(_ORIGINAL, int),
            ),
        ),
        "yarn": _Scaling(
            YarnRope,
            (
                _FACTOR,
                Field(_ORIGINAL, int),
                Field("beta_fast", float, 32.0, minimum=0),
                Field("beta_slow", float, 1.0, minimum=0),
                Field("attention_factor", float | None, None, minimum=0),
                Field("mscale", float | None, None, minimum=0),
                Field("mscale_all_dim", float | None, None, minimum=0),
                Field("truncate", bool, True),
            ),
        ),
        "longrope": _Scaling(
            LongRope,
            (
                Field("short_factor", list | tuple),
                Field("long_factor", list | tuple),
                Field(_ORIGINAL, int),
                Field("attention_factor", float | None, None, minimum=0),
                Field("short_mscale", float | None, None, minimum=0),
                Field("long_mscale", float | None, None, minimum=0),
            ),
        ),
    }
)

_OF_SCALINGS = frozenset(field.name for scaling in _SCALINGS.values() for field in scaling.fields)


def read_rope(
    config: Values, *, base: float, share: float | None = None, interleaved: bool = False
) -> tuple[Rope | None, list[Problem]]:
    """The rotary positions of a config, or None and every fault of them.

    Args:
        config: A ``config.json``.
        base: Where the file gives none.
        share: Of a head's dims that rotate, where the file gives none; None models whole heads only.
        interleaved: Of every model of the family.
    """
    where = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    table = config.get(where) or {}
    if not isinstance(table, Mapping):
        return None, [Problem(where, table, "must be a table")]
    if any(isinstance(value, Mapping) for value in table.values()):
        return None, [Problem(where, dict(table), "differs between layers, which this family does not model")]
    share_field = Field("partial_rotary_factor", float, share or 1.0, minimum=0, only=() if share else (1.0,))
    values, problems = read_fields({**config, **table}, (Field("rope_theta", float, base, minimum=0), share_field))
    problems.extend(_contradictions(config, table, where))
    name = _kind(table, "rope_type") or _kind(table, "type")
    if name is None:
        said = sorted(_OF_SCALINGS & table.keys())
        if said:
            rule = f"the config must give it beside {', '.join(said)}"
            return None, [*problems, Problem(f"{where}.rope_type", None, rule, "use 'default' for none")]
        name = "default"
    traits = {"share": values["partial_rotary_factor"], "interleaved": interleaved}
    if name == "default":
        return (None if problems else Rope(base=values["rope_theta"], **traits)), problems
    if name not in _SCALINGS:
        unknown = Problem(f"{where}.rope_type", name, "unknown", nearest(name, ("default", *_SCALINGS)))
        return None, [*problems, unknown]
    scaling, faults = _read_scaling(config, table, _SCALINGS[name])
    problems.extend(fault.under(where) for fault in faults)
    if problems:
        return None, problems
    return Rope(base=values["rope_theta"], scaling=_SCALINGS[name].spec(**scaling), **traits), []


def rope_config(rope: Rope) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, which transformers 4 and 5 both read."""
    base = {"rope_theta": rope.base, **({"partial_rotary_factor": rope.share} if rope.share != 1.0 else {})}
    if rope.scaling is None:
        return {**base, "rope_scaling": None}
    values, fields = attrs.asdict(rope.scaling), _SCALINGS[rope.scaling.kind].fields
    written = {field.name: value for field in fields if (value := values[_spec_name(field)]) is not None}
    written = {name: list(value) if isinstance(value, tuple) else value for name, value in written.items()}
    if written.get("truncate", False):
        del written["truncate"]  # what transformers does when it is not said
    if isinstance(rope.scaling, DynamicRope):
        del written[_ORIGINAL]  # always the model's own max_position_embeddings
    return {**base, "rope_scaling": {"rope_type": rope.scaling.kind, **written}}


def rope_of_dims(rope: Rope, hf: Values, head_dim: int) -> Rope:
    """The rotary positions of a family whose config may say how many dims of a head turn (``ROTARY_DIM_FIELDS``).

    Raises:
        SpecError: It also says their share, and another one.
    """
    if (turning := hf["rotary_dim"]) is None:
        return rope
    share = turning / head_dim
    given = (hf["rope_parameters"] or {}).get("partial_rotary_factor", hf["partial_rotary_factor"])
    rule = f"contradicts partial_rotary_factor={given}: of head_dim={head_dim} it is {share}"
    require(given is None or given == share, "rotary_dim", turning, rule, "leave one of them out")
    return attrs.evolve(rope, share=share)


def require_frequencies(rope: Rope, rotary_dim: int) -> None:
    """Hold that LongRoPE has a factor for each pair of the elements that turn.

    Raises:
        SpecError: It has more or fewer.
    """
    if isinstance(rope.scaling, LongRope):
        pairs, given = int(rotary_dim * rope.share) // 2, len(rope.scaling.short_factors)
        require(given == pairs, "short_factor", given, f"must hold one factor for each of {pairs} pairs that turn")


def _kind(table: Values, key: str) -> str | None:
    """The kind of scaling under either of its two keys."""
    name = table.get(key)
    return None if name is None else _OLD_NAMES.get(str(name), str(name))


def _contradictions(config: Values, table: Values, where: str) -> Iterator[Problem]:
    """What the file says twice, and not alike."""
    for name in ("rope_theta", "partial_rotary_factor"):
        inside, beside = table.get(name), config.get(name)
        if None not in (inside, beside) and inside != beside:
            yield Problem(f"{where}.{name}", inside, f"contradicts {name}={beside!r} beside the table", "keep one")
    kind, old = _kind(table, "rope_type"), _kind(table, "type")
    if None not in (kind, old) and kind != old:
        yield Problem(f"{where}.rope_type", kind, f"contradicts type={old!r}", "keep one")


def _read_scaling(config: Values, table: Values, scaling: _Scaling) -> tuple[dict[str, Any], list[Problem]]:
    longest = config.get("max_position_embeddings")
    # Phi-3 says it beside the table, and transformers reads the table of any other model without it as of its length.
    original = config.get(_ORIGINAL) if scaling.spec is LongRope else longest
    values, problems = read_fields({_ORIGINAL: original, **table}, scaling.fields)
    if scaling.spec is DynamicRope and values[_ORIGINAL] != longest:
        rule = f"must be max_position_embeddings={longest}, which dynamic scaling goes by"
        problems.append(Problem(_ORIGINAL, values[_ORIGINAL], rule))
    if scaling.spec is LongRope and not problems:
        problems.extend(_longrope_problems(config, table, values[_ORIGINAL]))
    return {_spec_name(field): values[field.name] for field in scaling.fields}, problems


def _longrope_problems(config: Values, table: Values, original: int) -> Iterator[Problem]:
    """What transformers would read otherwise than LongRoPE's spec says it."""
    if config.get(_ORIGINAL) not in (None, original):
        yield Problem(_ORIGINAL, original, f"contradicts {_ORIGINAL}={config[_ORIGINAL]} beside the table")
    longest = config.get("max_position_embeddings", original)
    if type_rule(longest, int) is not None:
        return  # a fault that is told by its own field
    stretch = longest / original
    if table.get("factor") is not None and table.get("attention_factor") is None and table["factor"] != stretch:
        rule = f"must be max_position_embeddings/{_ORIGINAL}={stretch:g}"
        yield Problem("factor", table["factor"], rule, "leave it out, or give attention_factor")


def _spec_name(field: Field) -> str:
    return _SPEC_NAMES.get(field.name, field.name)
