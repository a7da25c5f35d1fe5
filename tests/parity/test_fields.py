"""No field that transformers computes by is passed over: changing one changes our spec, or is refused."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ridgeline.core.errors import SpecError
from ridgeline.core.model import ModelSpec
from ridgeline.models.hf_config import model_from_hf
from tests.parity.cases.case import SHARED
from tests.parity.cases.table import CASES
from tests.parity.hf_models import tokens

EVERY_DAY = ("phi3", "minimax_m2")
WORDS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "sigmoid", "softmax")
NEVER_COMPUTED_BY = frozenset(
    (
        "architectures", "model_type", "transformers_version", "dtype", "_name_or_path", "chunk_size_feed_forward",
        "id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "use_cache",
        "is_encoder_decoder", "bos_token_id", "eos_token_id", "pad_token_id",
    )
)  # fmt: skip
"""Of any config, not of an architecture."""


def theirs_of(config: Mapping[str, Any]) -> Any:
    """The config of transformers, which writes infinity as a table and reads it so from files only."""
    infinite = {"__float__": "Infinity"}
    return AutoConfig.for_model(
        **json.loads(json.dumps(config), object_hook=lambda table: math.inf if table == infinite else table)
    )


def published(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as transformers writes it down, with every field that it takes for granted."""
    return json.loads(theirs_of(config).to_json_string(use_diff=False))


def config_of(name: str) -> dict[str, Any]:
    """The whole config of a case."""
    case = CASES[name]
    shared = {field: value for field, value in SHARED.items() if field not in case.without}
    return published({"model_type": name.split()[0], **shared, **case.fields})


def spec_of(config: dict[str, Any]) -> ModelSpec | None:
    """Our spec, or None where the config is refused."""
    try:
        return model_from_hf({**config, "architectures": None})
    except SpecError:
        return None


def logits_of(config: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> Any:
    """The logits of a config under given weights; None of one that does not build, run, or take them."""
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(11)
            model = AutoModelForCausalLM.from_config(theirs_of(config)).float().eval()
            if state is None:
                return model.state_dict(), model(tokens()[:, :-1]).logits
            model.load_state_dict(state)
            return model(tokens()[:, :-1]).logits
    except Exception:  # whatever transformers raises: the change makes no model to compare with
        return None


def changes(value: Any) -> Iterator[Any]:
    """Other values of a field, of its type or, where it is null, of any."""
    match value:
        case bool():
            yield not value
        case int():
            yield from (value + 1, value * 2)
        case float():
            yield from (value * 1.5 + 0.1, 0.0)
        case str():
            yield from (word for word in WORDS if word != value)
        case None:
            yield from (True, 2, 0.5)
        case list() if value:
            yield from (other for other in (value[::-1], value[1:] + value[:1]) if other != value)
        case dict():
            for name, inner in value.items():
                yield from ({**value, name: other} for other in changes(inner))


@pytest.mark.parametrize(
    "name", [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.full) for name in CASES]
)
def test_a_change_that_transformers_computes_by_is_seen(name):
    config = config_of(name)
    spec, (state, logits) = spec_of(config), logits_of(config)
    assert spec is not None
    passed_over = []
    for field in config.keys() - NEVER_COMPUTED_BY:
        for value in changes(config[field]):
            changed = {**config, field: value}
            if spec_of(changed) != spec:
                continue
            other = logits_of(changed, state)
            if other is not None and not torch.allclose(
                other, logits, rtol=1e-5, atol=1e-6
            ):  # as equal as fp32 sums are
                passed_over.append((field, value))
    assert passed_over == []


@pytest.mark.parametrize("name", CASES)
def test_a_field_left_out_is_what_transformers_takes_it_for(name):
    config = config_of(name)
    assert published(config) == config
    otherwise = {}
    for left_out in config.keys() - NEVER_COMPUTED_BY:
        rest = {field: value for field, value in config.items() if field != left_out}
        try:
            whole = published(rest)
        except Exception:  # whatever transformers raises: it must be given
            continue
        ours, theirs = spec_of(rest), spec_of(whole)
        if None not in (ours, theirs) and ours != theirs:
            otherwise[left_out] = whole.get(left_out)
    assert otherwise == {}
