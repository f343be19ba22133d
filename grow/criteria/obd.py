"""Optimal Brain Damage: the loss change, to second order, when a weight is removed (LeCun, Denker, Solla, NIPS 1989).

Assumes a trained network (no gradient left) and independent weights (diagonal curvature). With h >= 0 from the Gauss-Newton
matrix instead of the full Hessian. For pruning: absent connections all score 0.
"""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    return evidence["curvature"] * evidence.weight.square() / 2


OBD = Criterion("obd", frozenset({"curvature"}), _score)
"""h w^2 / 2, in units of the loss"""
