"""A family of models as a value: the Hugging Face fields it reads, and the way to a spec and back."""

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.fields import type_rule
from ridgeline.core.frozen import frozen
from ridgeline.core.model import Attention, FeedForward, Mixer, ModelSpec, Rope
from ridgeline.models.hf_template import Template

Values: TypeAlias = Mapping[str, Any]
REQUIRED = object()


@frozen
class Field:
    """One field of a ``config.json``.

    Attributes:
        name: As published.
        type: An annotation such as ``int | None``; integers are read as floats where it allows ``float``.
        default: Its value where the file has none, or null; ``REQUIRED`` when the file must say.
        minimum: The least value of a number.
        only: The values this family models; any other is refused.
        alias: A second name that some versions of transformers write.
        null_is_value: The file must give the field, and null says something.
    """

    name: str
    type: Any
    default: Any = REQUIRED
    minimum: float = attrs.field(default=1, kw_only=True)
    only: tuple[Any, ...] = attrs.field(default=(), kw_only=True)
    alias: str = attrs.field(default="", kw_only=True)
    null_is_value: bool = attrs.field(default=False, kw_only=True)


@frozen(kw_only=True)
class Family:
    """What Ridgeline knows of one family.

    Attributes:
        name: Hugging Face's ``model_type``.
        architectures: The classes it is published under; the first is the one written on export.
        fields: Every field its transformers class reads the architecture from; others cannot change it.
        rope_base: The base of the rotary positions where the file gives none.
        rotary_share: The share of a head that rotates where the file gives none; None where all of it always does.
        interleaved: Rotary dims are paired as neighbours.
        rope_by_layer: Kinds of layers turn apart, and ``spec_of`` reads of each how.
        mixers, feed_forwards: The kinds of parts its layers may have.
        spec_of: Checked values and rotary positions to a spec, its name and family left to the caller.
        config_of: The inverse, for a spec of this family's kinds of layer.
        weights: Where each parameter is found in the published files, by its name within the model; None while the way
            is not known, so that the family can be planned and not converted.
        mtp_weights: Likewise of multi-token prediction, by names within its layer and beside it, ``{layer}`` its depth;
            None where files have it as further layers.
        base: What every name but the head's begins with, and begins without in files of the model without its head.
    """

    name: str
    architectures: tuple[str, ...]
    fields: tuple[Field, ...]
    rope_base: float = 10000.0
    rotary_share: float | None = None
    interleaved: bool = False
    rope_by_layer: bool = False
    mixers: tuple[type[Mixer | None], ...] = (Attention,)
    feed_forwards: tuple[type[FeedForward | None], ...]
    spec_of: Callable[[Values, Rope], ModelSpec]
    config_of: Callable[[ModelSpec], dict[str, Any]]
    weights: Mapping[str, Template] | None = None
    mtp_weights: Mapping[str, Template] | None = None
    base: str = ""


def read_fields(config: Values, fields: Iterable[Field]) -> tuple[dict[str, Any], list[Problem]]:
    """The fields of a config as typed values, and every fault among them."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for field in fields:
        values[field.name] = _value(config, field)
        problems.extend(_problems(config, field, values[field.name]))
    return values, problems


def require(holds: bool, path: str, value: Any, rule: str, way_out: str = "") -> None:
    """Hold a rule over two fields of a config.

    Raises:
        SpecError: It does not hold.
    """
    if not holds:
        raise SpecError(Problem(path, value, rule, way_out))


def _value(config: Values, field: Field) -> Any:
    given = config.get(field.name)
    if given is None and field.alias:
        given = config.get(field.alias)
    if given is None:
        return None if field.null_is_value and field.name in config else field.default
    takes_float = float in (field.type, *typing.get_args(field.type))
    return float(given) if takes_float and isinstance(given, int) and not isinstance(given, bool) else given


def _problems(config: Values, field: Field, value: Any) -> Iterator[Problem]:
    other = config.get(field.alias) if field.alias else None
    if value is REQUIRED:
        yield Problem(field.name, None, "the config must give it")
    elif (rule := type_rule(value, field.type)) is not None:
        yield Problem(field.name, value, rule)
    elif other is not None and other != value:
        yield Problem(field.name, value, f"contradicts {field.alias}={other!r}")
    elif field.only:
        if value not in field.only:
            yield Problem(field.name, value, "is not modelled", f"known: {', '.join(map(repr, field.only))}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value < field.minimum:
        yield Problem(field.name, value, f"must be >= {field.minimum}")
