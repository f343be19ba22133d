"""Connections whose weight the loss wants to move are worth having."""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    return evidence["gradient"].abs()


def _momentum(evidence: LayerEvidence) -> Tensor:
    return evidence["momentum"].abs()


GRADIENT = Criterion("gradient", frozenset({"gradient"}), _score)
"""|dL/dw|, over all batches given (RigL: Evci et al. 2019, arXiv 1911.11134)."""

MOMENTUM = Criterion("momentum", frozenset({"momentum"}), _momentum)
"""|sum over the batches of decay^age dL/dw| (sparse momentum: Dettmers and Zettlemoyer 2019, arXiv 1907.04840).

A window, not the optimizer's own buffer: it ends with the last batch given, and its gradients are those of the present weights.
"""
