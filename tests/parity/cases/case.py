"""What a small model of a family is, for all of them: the sizes they share, and the words that cases are written in."""

from typing import Any

import attrs

SHARED = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "router_aux_loss_coef": 0.0,
    "tie_word_embeddings": False,
}
NO_HEAD_DIM = frozenset({"head_dim"})
"""Of families that know no such field, or mean another by it."""

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "tp2": (2, {"layout__tp": 2, "layout__sp": True}),
    "pp2": (2, {"layout__pp": 2}),
    "tp2 pp2": (4, {"layout__tp": 2, "layout__sp": True, "layout__pp": 2}),
    "ep2": (2, {"layout__ep": 2, "batch__gbs": 4}),
    "tp2 ep2": (2, {"layout__tp": 2, "layout__sp": True, "layout__ep": 2}),
    "tp2 etp2": (2, {"layout__tp": 2, "layout__sp": True, "layout__etp": 2}),
}
"""Ranks and fields of each layout that a case is tried in; each dp rank reads the same two samples."""

DENSE = ("alone", "tp2", "pp2")
ALL, OF_EXPERTS = (*DENSE, "tp2 pp2"), ("ep2", "tp2 ep2", "tp2 etp2")


@attrs.frozen
class Case:
    """A model of a family: its config's fields beside `SHARED`, those it leaves out of them, its layouts of every day.

    `tests.parity.cases.table` names it by its ``model_type`` and, after a space, what is special about it.
    """

    fields: dict[str, Any] = attrs.field(factory=dict)
    without: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)
    every_day: tuple[str, ...] = attrs.field(default=("tp2",), kw_only=True)

    @property
    def layouts(self) -> tuple[str, ...]:
        """All that the whole matrix tries it in."""
        has_experts = not {"num_experts_per_tok", "moe_topk"}.isdisjoint(self.fields)
        return (*ALL, *OF_EXPERTS) if has_experts else ALL


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    """Rotary positions of one kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}
