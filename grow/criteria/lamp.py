"""Layer-adaptive magnitude: a weight's share in what is left of its layer when all weaker ones are gone.

Lee et al. 2020, arXiv 2010.07611. The strongest weight of every layer scores 1, so that no layer is emptied. For pruning: absent
connections all score 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grow.candidates import Candidates
from grow.criteria.base import Criterion, Score
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    """As if the rows at hand were the whole layer."""
    return _shares(evidence.weight, _Tails(evidence.weight))


def _prepare(candidates: Candidates) -> tuple[Candidates, Score]:
    layers = candidates.evidence.layers
    tails: Mapping[str, _Tails] = {name: _Tails(layers[name].weight.detach()) for name in candidates.layers}

    def score(evidence: LayerEvidence) -> Tensor:
        return _shares(evidence.weight, tails[evidence.layer])

    return candidates, score


class _Tails:
    """Squares of a layer's weights in ascending order, and the sum from each on, in float64."""

    def __init__(self, weights: Tensor) -> None:
        self.squares = weights.double().square().flatten().sort().values
        self.sums = self.squares.flip(0).cumsum(0).flip(0)


def _shares(weight: Tensor, tails: _Tails) -> Tensor:
    """w^2 over the sum of all squares of at least w^2: equal weights score alike. 0 where w is."""
    if not weight.numel():
        return torch.zeros_like(weight)
    squares = weight.double().square()
    place = torch.searchsorted(tails.squares, squares.flatten()).reshape(weight.shape)
    return squares / tails.sums[place].clamp(min=torch.finfo(torch.float64).tiny)


LAMP = Criterion("lamp", frozenset(), _score, _prepare)
"""w^2 / sum of v^2 over the layer's weights v with |v| >= |w|"""
