"""No connection is worth more than another: the control for every other criterion, and the growth of SET (arXiv 1707.04780)."""

from __future__ import annotations

import torch
from torch import Tensor

from grow.criteria.base import Criterion
from grow.evidence import LayerEvidence


def _score(evidence: LayerEvidence) -> Tensor:
    weight, generator = evidence.weight, evidence.generator
    # Drawn where the generator lives, so that one seed means one choice on every device.
    return torch.rand(weight.shape, generator=generator, device=generator.device).to(weight.device)


RANDOM = Criterion("random", frozenset(), _score)
"""Uniform in [0, 1)"""
