"""Connections whose weight the loss wants to move are worth having (RigL: Evci et al. 2019, arXiv 1911.11134)."""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    assert evidence.gradient is not None
    return evidence.gradient.abs()


GRADIENT = Criterion("gradient", frozenset({"gradient"}), _score)
"""|dL/dw|"""
