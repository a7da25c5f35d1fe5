"""Whole gradients out of the pieces of all ranks."""

from collections.abc import Iterable, Mapping

import numpy as np

from tests.parity.on_ranks import Piece

CANCELLING = (".A_log", ".dt_bias")
"""One number a head, whose gradient is a sum over every position of terms of both signs, some 50 times its size."""


def whole_gradients(pieces_by_rank: Iterable[Iterable[Piece]]) -> dict[str, np.ndarray]:
    """Every gradient by name, in fp64, without padding.

    Ranks that hold the same part must agree on it; no part may be missing, and that of padding must be 0.
    """
    wholes: dict[str, np.ndarray] = {}
    pieces = [piece for pieces in pieces_by_rank for piece in pieces]
    for piece in pieces:
        whole = wholes.setdefault(piece.fqn, np.full(piece.global_shape, np.nan))
        begin = 0
        for box in piece.boxes:
            place = tuple(slice(*side) for side in box)
            part = piece.values[begin : begin + box[0][1] - box[0][0]]
            begin += len(part)
            known = ~np.isnan(whole[place])
            assert np.allclose(whole[place][known], part[known], rtol=0, atol=1e-5 * np.abs(part).max()), piece.fqn
            whole[place] = part
    real = {piece.fqn: tuple(map(slice, piece.shape)) for piece in pieces}
    for name, whole in wholes.items():
        assert not np.isnan(whole).any(), name
        assert np.count_nonzero(whole) == np.count_nonzero(whole[real[name]]), name
    return {name: whole[real[name]] for name, whole in wholes.items()}


def different(
    ours: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], *, rel: float = 1e-5
) -> dict[str, float]:
    """Tensors that differ, with the norm of the difference over the norm; infinity for one that only one side has."""
    differences = dict.fromkeys(ours.keys() ^ truth.keys(), np.inf)
    for name in ours.keys() & truth.keys():
        difference, norm = np.linalg.norm(ours[name] - truth[name]), np.linalg.norm(truth[name])
        bound = rel * norm * (50 if name.endswith(CANCELLING) else 1)
        if not difference <= bound:  # both are 0 for an expert that no token chose
            differences[name] = float(difference / norm) if norm else np.inf
    return differences
