"""The connections among which a criterion chooses: the existing ones, for pruning, or the absent ones, for growth.

Legend: R rows of a block, N candidates in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grow.axes import IntArray
from grow.evidence import Evidence, LayerEvidence
from grow.patterns import bounds

Scores: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Existing or absent connections of every layer that is not frozen, of which ``count`` are wanted.

    within: by layer, the sorted positions that are left of them; None: all. reserve: how many may turn out to be protected.
    pointwise: a score goes by what is stored of its own connection alone, so that existing ones are scored without the rows between.
    """

    evidence: Evidence
    existing: bool
    count: int
    frozen: frozenset[str] = frozenset()
    within: Mapping[str, IntArray] | None = None
    reserve: int = 0
    pointwise: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that may have candidates, in the network's order."""
        return tuple(c.layer for c in self.evidence.topology.layers if c.layer not in self.frozen)

    @property
    def total(self) -> int:
        """How many candidates there are."""
        if self.within is not None:
            return sum(map(len, self.within.values()))
        layers = [self.evidence.topology.layer(name) for name in self.layers]
        return sum(layer.count if self.existing else layer.possible - layer.count for layer in layers)

    def narrowed(self, evidence: Evidence, within: Mapping[str, IntArray]) -> Candidates:
        """Fewer candidates, with evidence about these."""
        return replace(self, evidence=evidence, within=within)

    def blocks(self, layer: str) -> Iterator[tuple[IntArray, IntArray, LayerEvidence]]:
        """Per block of rows: sorted positions of its candidates (N,), where they stand in the flattened block (N,), its evidence."""
        shape = self.evidence.topology.layer(layer).shape
        width = prod(shape[1:])
        for block in self.evidence.blocks(layer):
            local = self._local(layer, block.rows, width)
            yield _positions(block.rows, local, width), local, block.evidence

    def scores(self, score: Callable[[LayerEvidence], Tensor], layer: str) -> Iterator[tuple[IntArray, Scores]]:
        """Per block of rows: sorted positions of its candidates (N,), and their scores (N,)."""
        if self.pointwise and self.existing and self.within is None:
            yield self.evidence.topology.layer(layer).positions(), score(self.evidence.connections(layer)).to(torch.float32).cpu().numpy()
            return
        for positions, local, evidence in self.blocks(layer):
            if not len(local):
                continue
            flat = score(evidence).reshape(-1)
            chosen = flat if len(local) == len(flat) else flat.index_select(0, torch.from_numpy(local).to(flat.device))
            yield positions, chosen.to(torch.float32).cpu().numpy()

    def above(
        self, score: Callable[[LayerEvidence], Tensor], floor: Callable[[], float], most: int
    ) -> Iterator[tuple[str, IntArray, Scores]]:
        """Absent connections of all layers that may be among the ``most`` highest, above the floor, in the order (layer, position).

        As fast as the scores can be gone through once: what is rare is looked for only among the few that are high enough.
        """
        for layer in self.layers:
            connections = self.evidence.topology.layer(layer)
            width = prod(connections.shape[1:])
            for block in self.evidence.blocks(layer) if connections.index is not None else ():
                flat = score(block.evidence).reshape(-1).to(torch.float32)
                if not len(flat):
                    continue
                least, highest = (float(bound) for bound in torch.aminmax(flat))
                finite = isfinite(least) and isfinite(highest)
                if finite and highest <= floor():
                    continue
                scores, taken = flat.cpu().numpy(), self._taken(layer, block.rows, width)
                if finite and self.within is None:
                    scores = scores.copy()  # they may be the criterion's own
                    scores[taken] = -np.inf  # no floor is below it
                    local = _high(scores, floor(), most)
                else:
                    high = _high(scores, floor(), len(scores)) if finite else np.arange(len(scores))  # what is wrong is for the reader
                    local = self._absent(layer, block.rows, width, high, taken)
                yield layer, _positions(block.rows, local, width), scores[local]

    def _taken(self, layer: str, rows: IntArray, width: int) -> IntArray:
        """Where connections exist in the flattened rows."""
        index = self.evidence.topology.layer(layer).index
        assert index is not None
        return _in_rows(index, rows, width)

    def _absent(self, layer: str, rows: IntArray, width: int, local: IntArray, taken: IntArray) -> IntArray:
        """Those of some places in the flattened rows that are not ``taken``, or that are left of them."""
        free = np.ones(len(rows) * width, bool)
        if self.within is not None:
            free[:] = False
            free[self._local(layer, rows, width)] = True
        free[taken] = False
        found: IntArray = local[free[local]]
        return found

    def stream(self, score: Callable[[LayerEvidence], Tensor]) -> Iterator[tuple[str, IntArray, Scores]]:
        """Layer, positions and scores of every block, in the order (layer, position)."""
        for layer in self.layers:
            for positions, scores in self.scores(score, layer):
                yield layer, positions, scores

    def scored(self, score: Callable[[LayerEvidence], Tensor]) -> dict[str, tuple[IntArray, Scores]]:
        """Positions and scores of all candidates at once, by layer."""
        found = {}
        for layer in self.layers:
            parts = list(self.scores(score, layer)) or [(np.zeros(0, np.int64), np.zeros(0, np.float32))]
            found[layer] = parts[0] if len(parts) == 1 else (np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts]))
        return found

    def _local(self, layer: str, rows: IntArray, width: int) -> IntArray:
        """Where the candidates in some rows stand in the flattened rows (R * width,)."""
        connections = self.evidence.topology.layer(layer)
        if self.within is not None:
            return _in_rows(self.within.get(layer, np.zeros(0, np.int64)), rows, width)
        if connections.index is None:
            return np.arange(len(rows) * width) if self.existing else np.zeros(0, np.int64)
        present = _in_rows(connections.index, rows, width)
        if self.existing:
            return present
        absent = np.ones(len(rows) * width, bool)
        absent[present] = False
        return np.flatnonzero(absent)


def _high(scores: Scores, floor: float, most: int) -> IntArray:
    """Places of scores above a floor, and above -inf; without any floor, of at least the ``most`` highest, if there are so many."""
    if floor == -np.inf and 0 < most < len(scores):
        low, _ = bounds(scores, len(scores) - most + 1)
        found = np.flatnonzero(scores >= low)
        if low > -np.inf and len(found) >= most:
            return found
    return np.flatnonzero(scores > floor)


def _positions(rows: IntArray, local: IntArray, width: int) -> IntArray:
    """Flat positions of places in the flattened rows."""
    if not len(rows) or not width:
        return local
    if rows[-1] - rows[0] + 1 == len(rows):  # neighbours, as they mostly are
        return local + int(rows[0]) * width
    found: IntArray = rows[local // width] * width + local % width
    return found


def _in_rows(positions: IntArray, rows: IntArray, width: int) -> IntArray:
    """Of sorted flat positions, those in the given rows, as they stand in the flattened rows.

    >>> _in_rows(np.array([1, 4, 9, 11]), np.array([1, 3]), 3).tolist()
    [1, 3, 5]
    """
    if not len(rows) or not width:
        return np.zeros(0, np.int64)
    low, high = np.searchsorted(positions, [rows[0] * width, (rows[-1] + 1) * width])
    inside = positions[low:high]
    if rows[-1] - rows[0] + 1 == len(rows):  # neighbours, as they mostly are
        near: IntArray = inside - int(rows[0]) * width
        return near
    row, column = np.divmod(inside, width)
    slot = np.searchsorted(rows, row)
    held = rows[slot] == row
    local: IntArray = slot[held] * width + column[held]
    return local
