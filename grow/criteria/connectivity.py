"""Least connected instead of least salient: how much a unit tells another part, whatever the loss makes of it."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from grow.candidates import Candidates
from grow.criteria.base import Criterion, Score
from grow.evidence import LayerEvidence
from grow.patterns import key_count, layer_keys


def _alone(evidence: LayerEvidence) -> Tensor:
    """Without parts nothing is remote."""
    return evidence.weight.abs()


def _prepare(candidates: Candidates) -> tuple[Candidates, Score]:
    evidence = candidates.evidence
    topology, parts = evidence.topology, evidence.parts
    assert parts is not None  # gathered: "parts" is among the needs
    totals = np.zeros(key_count(topology, parts))
    for layer in topology.layers:
        for block in evidence.blocks(layer.layer):
            weights = block.evidence.weight.abs().flatten().double().cpu().numpy()
            keys = layer_keys(layer, _positions(block.rows, prod(layer.shape[1:])), topology, parts)
            np.add.at(totals, keys[keys >= 0], weights[keys >= 0])
    most = float(totals.max(initial=0.0))

    def score(given: LayerEvidence) -> Tensor:
        layer = topology.layer(given.layer)
        keys = layer_keys(layer, _positions(given.rows, prod(layer.shape[1:])), topology, parts)
        local = most + given.weight.abs().double()
        shared = torch.from_numpy(totals[np.maximum(keys, 0)]).to(local.device).reshape(local.shape)
        return torch.where(torch.from_numpy(keys >= 0).to(local.device).reshape(local.shape), shared, local)

    return candidates, score


def _positions(rows: np.ndarray, width: int) -> np.ndarray:
    return (rows[:, None] * width + np.arange(width)).reshape(-1)


CONNECTIVITY = Criterion("connectivity", frozenset({"parts"}), _alone, _prepare)
"""Sum of |w| over all connections from the same source unit into the same other part; what is not remote outlives what is, by |w|.

For pruning, with the pattern of groups (a price, which may be 0): the pair that says least to each other goes first.
"""
