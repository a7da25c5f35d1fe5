"""How a family says where a parameter is published: open names (``{layer}``, ``{expert}``) and a transform."""

from typing import Literal

import attrs

from ridgeline.core.frozen import frozen


@frozen
class Template:
    """A source whose names still hold ``{layer}`` and ``{expert}``.

    Where two layers are published as one, these are the halves ``{half}``, 0 and 1, of ``{pair}``. ``transposed``: the
    rows that the transform speaks of are columns there.
    """

    transform: Literal[
        "direct",
        "gate_up",
        "grouped_qkv",
        "packed_qkv",
        "gated_qkv",
        "delta_inputs",
        "stacked",
        "stacked_turns",
        "stacked_rows",
    ]
    names: tuple[str, ...]
    transposed: bool = False


def direct(name: str) -> Template:
    """The tensor ``name``, unchanged."""
    return Template("direct", (name,))


def gate_up(gate: str, up: str) -> Template:
    """``gate`` above ``up``."""
    return Template("gate_up", (gate, up))


def grouped_qkv(q: str, k: str, v: str) -> Template:
    """Query, key and value heads interleaved by key-value head."""
    return Template("grouped_qkv", (q, k, v))


def packed_qkv(name: str) -> Template:
    """The same, published as one tensor: all queries, all keys, all values."""
    return Template("packed_qkv", (name,))


def gated_qkv(q: str, k: str, v: str) -> Template:
    """Apart as in ``grouped_qkv``, where each query head is published above its gate."""
    return Template("gated_qkv", (q, k, v))


def delta_inputs(qkvz: str, ba: str) -> Template:
    """What a gated delta net reads, published key head by key head: queries, keys, values, gates; betas and alphas."""
    return Template("delta_inputs", (qkvz, ba))


def stacked(name: str) -> Template:
    """One expert of a tensor that stacks those of a layer, each matrix transposed."""
    return Template("stacked", (name,))


def stacked_turns(name: str) -> Template:
    """The same, gate and up in turn."""
    return Template("stacked_turns", (name,))


def stacked_rows(*names: str) -> Template:
    """One expert of tensors that stack those of a layer, its rows of each below those of the one before."""
    return Template("stacked_rows", names)


def transposed(template: Template) -> Template:
    """The same of matrices published as (inputs, outputs)."""
    return attrs.evolve(template, transposed=True)
