"""Decoders of GPT-2's kind: LayerNorms and biases everywhere, positions that are learned or linear biases."""

from tests.parity.cases.case import Case

CASES = {
    "bloom": Case({"tie_word_embeddings": True}, every_day=("pp2",)),
    "gpt2": Case(
        {"n_inner": 52, "tie_word_embeddings": True, **{f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")}}
    ),
}
