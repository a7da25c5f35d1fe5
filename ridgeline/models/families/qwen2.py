"""Qwen1.5, Qwen2 and Qwen2.5: biases on query, key and value; the upper layers may slide a window."""

from typing import Any

from ridgeline.core.model import Block, Mlp, ModelSpec, Rope
from ridgeline.models.families.decoder import (
    DECODER_FIELDS,
    DECODER_WEIGHTS,
    WINDOW_FIELDS,
    attention_of,
    decoder_config,
    decoder_of,
    first_feed_forward,
    layer_windows,
    window_config,
)
from ridgeline.models.family import Family, Field, Values

FIELDS = (
    *DECODER_FIELDS,
    *WINDOW_FIELDS,
    Field("intermediate_size", int),
    Field("num_key_value_heads", int),
    Field("head_dim", int | None, None),
)


def _spec_of(hf: Values, rope: Rope) -> ModelSpec:
    mlp = Mlp(ffn_hidden=hf["intermediate_size"])
    windows = layer_windows(hf)
    block = {w: Block(mixer=attention_of(hf, rope, qkv_bias=True, window=w), feed_forward=mlp) for w in set(windows)}
    return decoder_of(hf, tuple(block[window] for window in windows))


def _config_of(spec: ModelSpec) -> dict[str, Any]:
    return {
        **decoder_config(spec),
        **window_config(spec),
        "intermediate_size": first_feed_forward(spec, Mlp).ffn_hidden,
    }


QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    fields=FIELDS,
    feed_forwards=(Mlp,),
    spec_of=_spec_of,
    config_of=_config_of,
    weights=DECODER_WEIGHTS,
)
