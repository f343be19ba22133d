"""Criteria made of criteria: weighted sums, running means, and a cheap one that leaves few candidates to an expensive one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.candidates import Candidates, Scores
from grow.criteria.base import Criterion, Score
from grow.evidence import Evidence, LayerEvidence
from grow.evidence.base import to_storage
from grow.memory import Memory
from grow.streams import highest


def weighted_sum(name: str, parts: Sequence[tuple[Criterion, float]]) -> Criterion:
    """Sum of weight * score / mean |score|, the mean over all candidates: weights compare criteria of any scale."""
    if not parts:
        raise ValueError(f"parts of criterion {name!r} is empty, but must name at least one criterion and its weight")
    weights = [weight for _, weight in parts]

    def alone(evidence: LayerEvidence) -> Tensor:
        """As if the rows at hand were all."""
        scores = [criterion.score(evidence).double() for criterion, _ in parts]
        return _total(scores, weights, [float(score.abs().mean()) if score.numel() else 0.0 for score in scores])

    def prepare(candidates: Candidates) -> tuple[Candidates, Score]:
        ready = [criterion.ready(candidates) for criterion, _ in parts]
        if any(left is not candidates for left, _ in ready):
            raise ValueError(f"a part of criterion {name!r} narrows the candidates, but must score them all; put the sum into two_stage")
        means = [_mean(candidates, score) for _, score in ready]
        return candidates, lambda evidence: _total([score(evidence).double() for _, score in ready], weights, means)

    return Criterion(name, frozenset().union(*(criterion.needs for criterion, _ in parts)), alone, prepare)


def two_stage(cheap: Criterion, expensive: Criterion, multiple: float) -> Criterion:
    """``cheap`` leaves ``multiple`` times as many candidates as are wanted, and ``expensive`` decides among these.

    Evidence for ``expensive`` is gathered from the same batches, after ``cheap`` has spoken, for those rows only that still have a
    candidate; a backward pass goes no deeper than the first layer that has one.
    """
    if not multiple >= 1:
        raise ValueError(f"multiple is {multiple}, but must be at least 1; fewer candidates than are wanted leave no choice")

    def prepare(candidates: Candidates) -> tuple[Candidates, Score]:
        asked, score = cheap.ready(candidates)

        def above(floor: Callable[[], float], most: int) -> Iterator[tuple[str, IntArray, Scores]]:
            if not candidates.existing:
                return asked.above(score, floor, most)
            return ((layer, positions, -scores) for layer, positions, scores in asked.stream(score))  # the lowest are of interest

        left = min(asked.total, ceil(multiple * candidates.count) + candidates.reserve)
        within = highest(above, asked.layers, left, asked.total)
        topology = candidates.evidence.topology
        rows = {name: np.unique(positions // prod(topology.layer(name).shape[1:])) for name, positions in within.items() if len(positions)}
        return expensive.ready(candidates.narrowed(candidates.evidence.more(expensive.needs, rows), within))

    later = expensive.needs | expensive.later
    return Criterion(f"{cheap.name}_then_{expensive.name}", cheap.needs, expensive.score, prepare, later=later)


class RunningMean:
    """What `smoothed` remembers between updates. Both memories are to be attached to the network: `memories`."""

    def __init__(self, scores: Memory, weights: Memory) -> None:
        self.scores, self.weights = scores, weights

    @property
    def memories(self) -> tuple[Memory, Memory]:
        """Sum of the weighted scores, sum of their weights."""
        return self.scores, self.weights


def smoothed(criterion: Criterion, memory: RunningMean, decay: float = 0.9) -> Criterion:
    """Exponentially weighted mean of a criterion's scores over the updates, for pruning; a new connection counts from its first score.

    Every use of it is one update. Molchanov et al. 2019, arXiv 1906.10771, smooth their scores with 0.9.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}, but must be in [0, 1)")

    def prepare(candidates: Candidates) -> tuple[Candidates, Score]:
        if not candidates.existing:
            raise ValueError("smoothed scores are asked for absent connections, but exist for existing ones only; use them to prune")
        asked, score = criterion.ready(candidates)
        if asked is not candidates:
            raise ValueError(f"criterion {criterion.name!r} narrows the candidates, but must score them all to be smoothed")
        evidence, stored = candidates.evidence, dict(candidates.evidence.stored)
        for name in candidates.layers:
            key = f"{name}.weight"
            fresh = _stored_scores(evidence, name, score).to(memory.scores.tensors[key])
            memory.scores.tensors[key].mul_(decay).add_(fresh, alpha=1 - decay)
            memory.weights.tensors[key].mul_(decay).add_(1 - decay)
            mean = memory.scores.tensors[key] / memory.weights.tensors[key]
            stored[name] = {**stored.get(name, {}), "smoothed": mean}
        return replace(candidates, evidence=replace(evidence, stored=stored)), lambda found: found["smoothed"]

    return Criterion(f"smoothed_{criterion.name}", criterion.needs, criterion.score, prepare)


def _stored_scores(evidence: Evidence, name: str, score: Score) -> Tensor:
    """Scores of a layer's existing connections, as the layer stores its weight."""
    layer = evidence.layers[name]
    return to_storage(layer, (score(block.evidence) for block in evidence.blocks(name)))


def _mean(candidates: Candidates, score: Score) -> float:
    """Mean |score| of all candidates."""
    total, count = 0.0, 0
    for _, positions, scores in candidates.stream(score):
        total += float(np.abs(scores.astype(np.float64)).sum())
        count += len(positions)
    return total / max(1, count)


def _total(scores: Sequence[Tensor], weights: Sequence[float], means: Sequence[float]) -> Tensor:
    parts = [score * (weight / (mean or 1.0)) for score, weight, mean in zip(scores, weights, means, strict=True)]
    return torch.stack(parts).sum(0)
