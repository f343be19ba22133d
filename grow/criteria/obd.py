"""Optimal Brain Damage: the loss change, to second order, when a weight is removed (LeCun, Denker, Solla, NIPS 1989).

Assumes independent weights (a diagonal Hessian h) and, but for `OBD_SIGNED`, a trained network (no gradient left). The estimates
of h differ in cost: one backward pass a class (`OBD`), one a batch with the squares of single samples' gradients (`OBD_FISHER`), one a
drawn label (`OBD_MC_FISHER`), two a random probe (`OBD_HUTCHINSON`). For pruning: absent connections all score 0.
"""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion, Score
from grow.evidence import LayerEvidence, Need


def _second_order(need: Need) -> Score:
    def score(evidence: LayerEvidence) -> Tensor:
        # A random probe, or the Hessian itself, may say less than zero: no reason to prefer a weight, so it counts as none.
        return evidence[need].clamp(min=0) * evidence.weight.square() / 2

    return score


def _signed(evidence: LayerEvidence) -> Tensor:
    return evidence["curvature"] * evidence.weight.square() / 2 - evidence["gradient"] * evidence.weight


OBD = Criterion("obd", frozenset({"curvature"}), _second_order("curvature"))
"""h w^2 / 2, in units of the loss, with h the exact diagonal of the Gauss-Newton matrix."""

OBD_FISHER = Criterion("obd_fisher", frozenset({"fisher"}), _second_order("fisher"))
"""With h from squared gradients of single samples (empirical Fisher): not the Hessian, and zero where the loss is."""

OBD_MC_FISHER = Criterion("obd_mc_fisher", frozenset({"mc_fisher"}), _second_order("mc_fisher"))
"""With h from squared gradients for labels drawn from the outputs: the Gauss-Newton diagonal in expectation."""

OBD_HUTCHINSON = Criterion("obd_hutchinson", frozenset({"hutchinson"}), _second_order("hutchinson"))
"""With h from products of the Hessian and random signs; an estimate below zero counts as zero."""

OBD_SIGNED = Criterion("obd_signed", frozenset({"curvature", "gradient"}), _signed)
"""h w^2 / 2 - g w: the estimated loss change with its sign, for networks that are not at a minimum. Below zero: removal helps."""
