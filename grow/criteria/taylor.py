"""First-order estimates of the loss change when a weight is removed. For pruning: absent connections all score 0."""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _taylor(evidence: LayerEvidence) -> Tensor:
    return evidence["taylor"]


def _snip(evidence: LayerEvidence) -> Tensor:
    return (evidence["gradient"] * evidence.weight).abs()


TAYLOR = Criterion("taylor", frozenset({"taylor"}), _taylor, pointwise=True)
"""Mean over the minibatches of |g w|, since the mean of g vanishes at a minimum (Molchanov et al. 2016, arXiv 1611.06440)."""

SNIP = Criterion("snip", frozenset({"gradient"}), _snip)
"""|g w| with g of all batches together; before training (Lee, Ajanthan, Torr 2018, arXiv 1810.02340).

The paper divides by the sum over the network, which changes no order.
"""
