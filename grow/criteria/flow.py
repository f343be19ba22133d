"""What keeps signals and gradients flowing, before training. For pruning: absent connections all score 0."""

from __future__ import annotations

from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _synflow(evidence: LayerEvidence) -> Tensor:
    return evidence["synflow"]


def _grasp(evidence: LayerEvidence) -> Tensor:
    return evidence.weight * evidence["hessian_gradient"]


SYNFLOW = Criterion("synflow", frozenset({"synflow"}), _synflow, round_share=0.045)
"""|dR/dw w|, without data (Tanaka et al. 2020, arXiv 2006.05467).

In a single round whole layers vanish; 100 rounds from all connections to one in a hundred, the paper's setting, take 4.5 % each.
"""

GRASP = Criterion("grasp", frozenset({"hessian_gradient"}), _grasp)
"""w (H g): what the removal of w takes, to first order, from half the squared norm of the gradient.

Wang, Zhang, Grosse 2020, arXiv 2002.07376. The paper's score is the negative, of which the largest are removed; the loss here is the
task's, without the paper's temperature of 200.
"""
