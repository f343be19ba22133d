"""Weights that training moves away from zero are worth having (movement pruning: Sanh, Wolf, Rush 2020, arXiv 2005.07683)."""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    return evidence["movement"]


MOVEMENT = Criterion("movement", frozenset({"movement"}), _score, pointwise=True)
"""-sum over the steps of learning rate * g w, kept by a `grow.movement.Movement` that is attached to the network."""
