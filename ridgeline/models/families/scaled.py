"""What MiniCPM and its kin do to embedded tokens, to what layers add, and to logits (arXiv 2404.06395, section 3)."""

import math
from typing import Any

from ridgeline.core.model import ModelSpec
from ridgeline.models.family import Field, Values

SCALE_FIELDS = (
    Field("scale_emb", float, minimum=0),
    Field("scale_depth", float | None, minimum=0, null_is_value=True),
    Field("dim_model_base", float | None, null_is_value=True),
)


def scales_of(hf: Values) -> dict[str, float]:
    """The scales of a model; a null ``scale_depth`` leaves layers as they are, a null ``dim_model_base`` logits."""
    depth, base = hf["scale_depth"], hf["dim_model_base"]
    return {
        "embedding_scale": hf["scale_emb"],
        "residual_scale": 1.0 if depth is None else depth / math.sqrt(hf["num_hidden_layers"]),
        "logit_scale": 1.0 if base is None else base / hf["hidden_size"],
    }


def scales_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields that ``scales_of`` reads, as short as they were published."""
    base = _numerator(spec.logit_scale, spec.hidden)
    return {
        "scale_emb": spec.embedding_scale,
        "scale_depth": _numerator(spec.residual_scale, math.sqrt(spec.num_layers)),
        "dim_model_base": int(base) if base.is_integer() else base,
    }


def _numerator(quotient: float, divisor: float) -> float:
    """The shortest decimal whose quotient is this one to the last bit."""
    product = quotient * divisor
    near = (product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    decimals = (float(f"{number:.{digits}g}") for digits in range(1, 18) for number in near)
    return next((decimal for decimal in decimals if decimal / divisor == quotient), product)
