"""Weights far from zero are worth having (Han et al. 2015, arXiv 1506.02626). For pruning: absent connections all score 0."""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    return evidence.weight.abs()


MAGNITUDE = Criterion("magnitude", frozenset(), _score, pointwise=True)
"""|w|"""
